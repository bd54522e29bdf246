"""The table of derived values, printed and saved when a run starts."""

import sys
from dataclasses import asdict
from pathlib import Path

from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.optim import TrainingPlan


def plan_rows(
    config: GPTConfig, plan: TrainingPlan, world_size: int, micro_batch_size: int, row_len: int
) -> list[tuple[str, str]]:
    """Return names and values of the derived quantities."""
    counts = count_parameters(config)
    accumulate = plan.tokens_per_step // (micro_batch_size * row_len * world_size)
    return [
        ("layers x width", f"{config.n_layer} x {config.n_embd}"),
        ("heads (kv)", f"{config.n_head} ({config.n_kv_head}) of {config.head_dim}"),
        ("vocabulary, context", f"{config.vocab_size:,}, {config.sequence_len:,}"),
        ("parameters", f"{counts.total:,} ({counts.scaling:,} count for scaling)"),
        ("FLOPs per token", f"{plan.flops_per_token:,}"),
        (
            "tokens per step",
            f"{plan.tokens_per_step:,} = {micro_batch_size} sequences x {accumulate} micro-batches x {world_size} ranks",
        ),
        ("steps", f"{plan.num_steps:,}"),
        ("tokens, FLOPs", f"{plan.total_tokens:,}, {plan.total_flops:.3g}"),
        ("learning-rate scale", f"{plan.lr_scale:.4g}"),
        ("weight decay", f"{plan.weight_decay:.4g}"),
    ]


def save_plan(path: Path, plan: TrainingPlan, micro_batch_size: int) -> None:
    """Write every derived value to a JSON file."""
    totals = {"total_tokens": plan.total_tokens, "total_flops": plan.total_flops}
    write_json(path, {**asdict(plan), **totals, "micro_batch_size": micro_batch_size})


def saved_micro_batch_size(path: Path) -> int | None:
    """Return the micro-batch size in a saved plan; None without a plan."""
    if not path.exists():
        return None
    size = read_json(path).get("micro_batch_size")
    return size if isinstance(size, int) and size >= 1 else None


def print_plan(
    config: GPTConfig,
    plan: TrainingPlan,
    world_size: int,
    micro_batch_size: int,
    row_len: int,
    notes: dict[str, str],
) -> None:
    """Print the table to stderr, followed by the notes (choices by name)."""
    for name, value in [*plan_rows(config, plan, world_size, micro_batch_size, row_len), *notes.items()]:
        print(f"  {name:<22}{value}", file=sys.stderr)

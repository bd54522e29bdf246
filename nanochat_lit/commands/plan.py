"""`nanochat-lit plan`: dimensions, hyperparameters and cost of a pretraining run, without running it."""

import json as json_module
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch

from nanochat_lit.common.compilers import instructions
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import (
    BFLOAT16_CAPABILITY,
    COMPUTE_DTYPES,
    Card,
    find_card,
    native_cuda_dtype,
    resolve_compute_dtype,
)
from nanochat_lit.model.accounting import count_parameters, kv_cache_bytes
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.model.decode_kernel import uncovered
from nanochat_lit.model.gpt import Checkpointing
from nanochat_lit.model.loss_kernel import loss_library, loss_problem
from nanochat_lit.model.memory import TrainingMemory, largest_that_fits, training_memory
from nanochat_lit.optim.build import EMBEDDING_LR, MATRIX_LR, REFERENCE_WIDTH, SCALAR_LR, UNEMBEDDING_LR
from nanochat_lit.optim.scaling import TrainingPlan, derive_plan, micro_batches
from nanochat_lit.optim.step_costs import step_costs
from nanochat_lit.training.execution import describe_kernels


def plan(  # noqa: PLR0913 - every option of the command is a parameter
    depth: int = 12,
    target_param_data_ratio: float = 12.0,
    num_steps: int | None = None,
    target_flops: float | None = None,
    tokens_per_step: int | None = None,
    sequence_len: int = 2048,
    vocab_size: int = 32768,
    head_dim: int = 128,
    aspect_ratio: int = 64,
    n_kv_head: int | None = None,
    window_pattern: str | None = None,
    bigram_factor: int = 0,
    architecture: Literal["nanochat", "qwen3", "nanochat2025", "nanochat2026"] = "nanochat",
    tie_embeddings: bool = False,
    micro_batch_size: int | None = None,
    gpus: int = 8,
    gpu: str | None = None,
    peak_flops_per_s: float | None = None,
    mfu: float = 0.5,
    price_per_gpu_hour: float = 3.0,
    strategy: Literal["ddp", "zero"] = "ddp",
    device: Literal["cuda", "cpu"] = "cuda",
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
    compile: bool = True,  # noqa: A002 - the key of recipes
    activation_checkpointing: Checkpointing = False,
    fp8: bool = False,
    json: bool = False,
) -> None:
    """Print dimensions, parameters, tokens, batch, learning rates, memory, communication, hours and cost of a pretraining run.

    Args:
        depth: Number of layers; determines the defaults of everything else.
        target_param_data_ratio: Tokens per scaling parameter.
        num_steps: Number of steps; overrides target_flops and target_param_data_ratio.
        target_flops: Compute budget, FLOPs; overrides target_param_data_ratio.
        tokens_per_step: Tokens per optimizer step; overrides the scaling law.
        sequence_len: Context length, tokens.
        vocab_size: Vocabulary size.
        head_dim: Channels per attention head.
        aspect_ratio: Channels of width per layer of depth.
        n_kv_head: Key/value heads; null is the number of query heads.
        window_pattern: Attention windows, S (short) and L (long), repeated over the layers; null is SSSL (qwen3: L).
        bigram_factor: Entries of the hashed bigram embedding, as a multiple of the vocabulary; 0 disables it.
        architecture: nanochat, qwen3, nanochat2025 or nanochat2026.
        tie_embeddings: Use one matrix as embedding and unembedding; qwen3 only.
        micro_batch_size: Sequences per device per forward pass; affects the memory estimate. null is 16, or as many of
            them as divide a device's share of a step.
        gpus: Number of devices.
        gpu: Device name, such as T4, A100, "RTX 4090" or H100; null is this machine's GPU, or H100 without one.
            Determines dtype, attention kernel and available memory. A number sets `gpus` instead.
        peak_flops_per_s: 16-bit peak of one device, FLOP/s; null looks it up by name.
        mfu: Assumed model FLOPs utilization, above 0 and at most 1.
        price_per_gpu_hour: US dollars per device-hour.
        strategy: ddp, or zero (optimizer state sharded over the devices).
        device: Device type for the memory estimate; cpu adds 0.5 GiB for the process.
        compute_dtype: Dtype of activations, for the memory estimate; auto is the GPU's native 16-bit dtype.
        compile: Use torch.compile, for the memory estimate.
        activation_checkpointing: true or selective: recompute activations in the backward pass, for the memory
            estimate.
        fp8: Compute linear layers in float8, for the memory estimate.
        json: Print one JSON object instead of the table.
    """
    gpus, gpu = (int(gpu), None) if gpu is not None and gpu.isdecimal() else (gpus, gpu)  # --gpu 8
    config = GPTConfig.from_depth(
        depth, vocab_size=vocab_size, sequence_len=sequence_len, head_dim=head_dim, aspect_ratio=aspect_ratio,
        n_kv_head=n_kv_head, window_pattern=window_pattern, bigram_factor=bigram_factor, architecture=architecture, tie_embeddings=tie_embeddings,
    )  # fmt: skip
    budget = {"target_param_data_ratio": target_param_data_ratio, "num_steps": num_steps, "target_flops": target_flops}
    derived = derive_plan(config, tokens_per_step=tokens_per_step, **budget)
    if micro_batch_size is None:  # the largest divisor of 16 that divides a device's sequences of a step
        micro_batch_size = math.gcd(16, derived.tokens_per_step // (sequence_len * max(1, gpus)))
    this_gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "H100"
    dtype = _dtype(gpu := gpu or this_gpu, device, compute_dtype)
    estimate = partial(
        training_memory, config, strategy=strategy, device_type=device, compute_dtype=dtype, is_compiled=compile, fp8=fp8,
        capability=_capability(gpu), activation_checkpointing=activation_checkpointing,
    )  # fmt: skip
    values = _values(config, derived, micro_batch_size, gpus) | _memory(config, estimate, micro_batch_size, gpus)
    costs = step_costs(config, strategy=strategy, world_size=gpus, compute_dtype=dtype)
    values["optimizer_step_of_a_device"] = asdict(costs)
    values |= _hardware(config, device, find_card(gpu), dtype, partial(estimate, world_size=gpus), micro_batch_size)
    values["cost"] = _cost(derived, gpus, gpu, strategy, peak_flops_per_s, mfu, price_per_gpu_hour)
    print(json_module.dumps(values) if json else _table(values))


def _capability(gpu: str) -> tuple[int, int]:
    card = find_card(gpu)
    return card.capability if card is not None and card.capability is not None else BFLOAT16_CAPABILITY


def _dtype(gpu: str, device: str, requested: str) -> torch.dtype:
    """Return the compute dtype of a run on a GPU; raises UserError for bfloat16 on one that does not support it."""
    native = native_cuda_dtype(_capability(gpu))
    if device == "cuda" and requested == "bfloat16" and native != torch.bfloat16:
        raise UserError(
            f"compute_dtype is bfloat16, which {gpu} does not support; use auto or {native}".replace("torch.", "")
        )
    if requested == "auto":
        return native if device == "cuda" else resolve_compute_dtype("auto", device)
    return COMPUTE_DTYPES[requested]


def _hardware(
    config: GPTConfig,
    device: str,
    card: Card | None,
    dtype: torch.dtype,
    estimate: Callable[..., TrainingMemory],
    micro_batch_size: int,
) -> dict[str, dict[str, Any]]:
    """Return the CPU's kernels, or the GPU's features and the largest power-of-two micro-batch that fits."""
    if device == "cpu":
        library, obstacle = loss_library(), uncovered(config) or loss_problem()
        decoding = f"{instructions(library)} (C++)" if library and not obstacle else f"PyTorch; not C++: {obstacle}"
        return {"kernels_of_this_machine": {"training": describe_kernels(), "decoding": decoding}}
    if card is None:
        return {}

    def fits(size: int) -> bool:
        return estimate(micro_batch_size=size).total <= card.gib * 2**30

    card_values = {
        "memory_gib": card.gib,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "fits": fits(micro_batch_size),
        "largest_micro_batch": largest_that_fits([2**n for n in range(12)], fits),
    }
    return {"card": card_values}


def _values(config: GPTConfig, derived: TrainingPlan, micro_batch_size: int, gpus: int) -> dict[str, dict[str, Any]]:
    """Return all values except memory and cost, by section."""
    if gpus < 1 or micro_batch_size < 1:
        raise UserError(f"gpus {gpus} and micro_batch_size {micro_batch_size} must be at least 1")
    counts = count_parameters(config)
    training = ("flops_per_token", "target_tokens", "tokens_per_step", "num_steps", "total_tokens", "total_flops")
    width_scale = (config.n_embd / REFERENCE_WIDTH) ** -0.5
    number = micro_batches(derived.tokens_per_step, micro_batch_size, config.sequence_len, gpus)
    return {
        "model": {**config.to_dict(), "head_dim": config.head_dim, "windows": list(config.windows)},
        "parameters": {**asdict(counts), "total": counts.total, "scaling": counts.scaling},
        "training": {name: getattr(derived, name) for name in training} | {"micro_batches_per_step": number},
        "learning_rates": {
            "lr_scale": derived.lr_scale,
            "width_scale": width_scale,
            "unembedding_lr": UNEMBEDDING_LR * width_scale * derived.lr_scale,
            "embedding_lr": EMBEDDING_LR * width_scale * derived.lr_scale,
            "matrix_lr": MATRIX_LR * derived.lr_scale,
            "scalar_lr": SCALAR_LR * derived.lr_scale,
            "weight_decay": derived.weight_decay,
        },
    }


def _memory(
    config: GPTConfig, estimate: Callable[..., TrainingMemory], micro_batch_size: int, gpus: int
) -> dict[str, dict[str, Any]]:
    """Return the memory estimate by component, and its total for several numbers of devices.

    The checkpoint on rank 0's host contains the optimizer state of all devices.
    """
    counts = sorted({2**i for i in range(gpus.bit_length())} | {gpus})  # zero divides the optimizer state by these
    totals = {n: estimate(micro_batch_size=micro_batch_size, world_size=n) for n in counts}
    whole = {
        **asdict(totals[gpus]),
        "total": totals[gpus].total,
        "kv_cache_per_sequence": kv_cache_bytes(config),
        "checkpoint_on_host": totals[1].weights + totals[1].optimizer_state,
    }
    return {"memory_bytes": whole, "memory_bytes_by_devices": {str(n): memory.total for n, memory in totals.items()}}


def _cost(
    derived: TrainingPlan, gpus: int, gpu: str, strategy: str, peak_flops_per_s: float | None, mfu: float, price: float
) -> dict[str, Any]:
    if not 0 < mfu <= 1:
        raise UserError(f"mfu is {mfu}; it must be above 0 and at most 1")
    peak = peak_flops_per_s if peak_flops_per_s is not None else getattr(find_card(gpu), "peak_flops_per_s", math.nan)
    if not peak > 0:  # NaN for an unknown name
        raise UserError(f"the peak FLOP/s of {gpu!r} is unknown; set --peak_flops_per_s to a positive number")
    hours = derived.total_flops / (peak * mfu * gpus) / 3600
    return {
        "hardware": f"{gpus} x {gpu}",
        "strategy": strategy,
        "peak_flops_per_s": peak,
        "mfu": mfu,
        "hours": hours,
        "price_per_gpu_hour": price,
        "dollars": hours * gpus * price,
    }


def _table(values: dict[str, Any]) -> str:
    lines = []
    for section, entries in values.items():
        lines.append(section.replace("_", " "))
        lines += [f"  {name:<24}{_format(name, value, section)}" for name, value in entries.items()]
    lines.append("memory, hours and cost are estimates; set --mfu and --price_per_gpu_hour to match your hardware")
    return "\n".join(lines)


def _format(name: str, value: Any, section: str) -> str:
    if section.startswith("memory_bytes"):
        return f"{value / 2**30:,.2f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "windows":
        return " ".join(map(str, value))
    if name == "dollars":
        return f"{value:,.0f}"
    if name == "hours":
        return f"{value:,.2f}"
    if name in ("total_flops", "peak_flops_per_s", "muon_flops", "sent_bytes"):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)

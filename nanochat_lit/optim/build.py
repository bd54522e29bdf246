"""The optimizer of a model: its parameter groups, MuonAdamW or any other, and a training loop without a Trainer."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.model import GPT
from nanochat_lit.optim.muon_adamw import MuonAdamW
from nanochat_lit.optim.schedules import Schedule

ADAMW_EPS = 1e-10

UNEMBEDDING_LR = 0.008
EMBEDDING_LR = 0.3
MATRIX_LR = 0.02
SCALAR_LR = 0.5
WEIGHT_DECAY = 0.28
"""Learning rates tuned at depth 12 with batches of 2^19 tokens."""

REFERENCE_WIDTH = 768
"""Width at which the AdamW learning rates of the embeddings were tuned; they scale with (n_embd / 768) ** -0.5."""


def param_groups(
    model: GPT,
    *,
    unembedding_lr: float = UNEMBEDDING_LR,
    embedding_lr: float = EMBEDDING_LR,
    matrix_lr: float = MATRIX_LR,
    scalar_lr: float = SCALAR_LR,
    weight_decay: float = WEIGHT_DECAY,
) -> list[dict[str, Any]]:
    """Return parameter groups for `MuonAdamW`, each with `name`, `kind` and hyper-parameters.

    Args:
        model: Model whose parameters are grouped.
        unembedding_lr: AdamW learning rate of lm_head at width 768.
        embedding_lr: AdamW learning rate of the token embedding at width 768; value and bigram embeddings use half.
        matrix_lr: Muon learning rate of the blocks' matrices.
        scalar_lr: AdamW learning rate of x0_lambdas; resid_lambdas use 1% of it.
        weight_decay: Weight decay of the Muon groups; the AdamW groups have fixed values.
    """
    scale = (model.config.n_embd / REFERENCE_WIDTH) ** -0.5
    parameters = dict(model.named_parameters())

    def named(*names: str) -> list[Any]:
        """Those of these names, or in modules of these names; an architecture need not have them."""
        return [own for name in names for key, own in parameters.items() if f"{key}.".startswith(f"{name}.")]

    groups = [
        _adamw("lm_head", named("lm_head"), unembedding_lr * scale, (0.8, 0.96), 0.01),
        _adamw("wte", named("transformer.wte"), embedding_lr * scale, (0.8, 0.995), 0.001),
        _adamw("value_embeds", named("value_embeds"), 0.5 * embedding_lr * scale, (0.8, 0.995), 0.01),
        _adamw("resid_lambdas", named("resid_lambdas"), 0.01 * scalar_lr, (0.8, 0.95), 0.05),
        _adamw("x0_lambdas", named("x0_lambdas"), scalar_lr, (0.96, 0.95), 0.0),
        _adamw("smear", named("smear_lambda", "backout_lambda", "smear_gate"), 0.2, (0.8, 0.95), 0.0),
        _adamw("bigram", named("bigram"), 0.5 * embedding_lr * scale, (0.8, 0.995), 0.01),
    ]
    groups = [group for group in groups if group["params"]]
    matrices = [parameter for block in model.blocks for parameter in block.parameters() if parameter.ndim == 2]
    grouped = {
        id(parameter) for parameters in [matrices, *(group["params"] for group in groups)] for parameter in parameters
    }
    if added := [
        parameter for parameter in model.parameters() if id(parameter) not in grouped
    ]:  # additional parameters of a variant
        groups.append(_adamw("added", added, 0.01 * scalar_lr, (0.8, 0.95), 0.0))
    muon = [
        {
            "name": "muon_" + "x".join(map(str, shape)),
            "kind": "muon",
            "params": [matrix for matrix in matrices if tuple(matrix.shape) == shape],
            "lr": matrix_lr,
            "momentum": 0.95,
            "beta2": 0.9,
            "weight_decay": weight_decay,
        }
        for shape in sorted({tuple(matrix.shape) for matrix in matrices})
    ]
    return groups + muon


def adapter_groups(model: GPT, lora_lr: float) -> list[dict[str, Any]]:
    """Return the parameter group of a model of which only a LoRA adapter is trained; see `add_lora`."""
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [_adamw("lora", factors, lora_lr, (0.9, 0.95), 0.0)]


def _adamw(name: str, params: list[Any], lr: float, betas: tuple[float, float], weight_decay: float) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "adamw",
        "params": params,
        "lr": lr,
        "betas": betas,
        "eps": ADAMW_EPS,
        "weight_decay": weight_decay,
    }


OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]


def build_optimizer(
    model: GPT,
    learning_rates: dict[str, float],
    *,
    lr_scale: float = 1.0,
    weight_decay: float,
    make: OptimizerCallable | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer of a run.

    `learning_rates` are arguments of `param_groups` or `adapter_groups`, multiplied by `lr_scale` (except smear and
    LoRA); `weight_decay` is that of the Muon groups. `make` returns another optimizer of named parameter groups, with
    its own hyper-parameters; None is MuonAdamW.
    """
    groups = (adapter_groups if "lora_lr" in learning_rates else param_groups)(model, **learning_rates)
    if make is not None:
        optimizer = make([{"name": group["name"], "params": group["params"]} for group in groups])
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer
    for group in groups:
        if group["name"] not in ("smear", "lora"):
            group["lr"] *= lr_scale
        if group["kind"] == "muon":
            group["weight_decay"] = weight_decay
    return MuonAdamW(groups, torch.bfloat16 if model.compute_dtype == torch.bfloat16 else None)


def apply_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, weight_decay: float) -> None:
    """Set the hyper-parameters of a step, counted from 0: learning rates, and momentum and weight decay of Muon groups.

    `weight_decay` is that of the Muon groups before the schedule's factor.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * schedule.lr_multiplier(step)
        if group.get("kind") == "muon":
            group["momentum"] = schedule.muon_momentum(step)
            group["weight_decay"] = weight_decay * schedule.weight_decay_multiplier(step)


def train_in_a_loop(
    model: GPT, batches: Iterable[dict[str, Tensor]], schedule: Schedule, **learning_rates: float
) -> list[float]:
    """Take one optimizer step per batch, on the model's device.

    Args:
        model: Model to train in place.
        batches: Batches with inputs and targets, (B, T) token ids.
        schedule: Schedule of learning rates, momentum and weight decay; determines the number of steps.
        **learning_rates: Learning rates and weight decay, as in `param_groups`.

    Returns:
        Loss per step, nats per token.
    """
    weight_decay = learning_rates.pop("weight_decay", WEIGHT_DECAY)
    optimizer = build_optimizer(model, learning_rates, weight_decay=weight_decay)
    losses = []
    for step, batch in enumerate(islice(batches, schedule.num_steps)):
        apply_schedule(optimizer, schedule, step, weight_decay)
        loss = model(batch["inputs"].to(model.device), batch["targets"].to(model.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses

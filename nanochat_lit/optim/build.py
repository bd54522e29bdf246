"""Creates the optimizer of a model: MuonAdamW by default, or any other through a callable."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from nanochat_lit.model.gpt import GPT
from nanochat_lit.optim.muon_adamw import MuonAdamW
from nanochat_lit.optim.param_groups import adapter_groups, param_groups
from nanochat_lit.optim.schedules import Schedule

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

    Args:
        model: Model whose parameters are optimized.
        learning_rates: Keyword arguments of `param_groups`, or of `adapter_groups`; ignored by optimizers other than MuonAdamW.
        lr_scale: Factor on the learning rates of MuonAdamW (except smear and LoRA).
        weight_decay: Weight decay of the Muon groups.
        make: Returns an optimizer of named parameter groups without hyper-parameters; None is MuonAdamW.
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
    """Set the hyper-parameters of a step: learning rates of all groups, momentum and weight decay of Muon groups.

    Args:
        optimizer: Optimizer whose groups have an `initial_lr`.
        schedule: Schedule of the run.
        step: Index of the next step, from 0.
        weight_decay: Weight decay of the Muon groups before the schedule's factor.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * schedule.lr_multiplier(step)
        if group.get("kind") == "muon":
            group["momentum"] = schedule.muon_momentum(step)
            group["weight_decay"] = weight_decay * schedule.weight_decay_multiplier(step)

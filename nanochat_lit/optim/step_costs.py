"""What an optimizer step costs a rank beside forward and backward pass: bytes sent, and Muon's arithmetic. On paper."""

from dataclasses import dataclass
from typing import Any

import torch

from nanochat_lit.model.architecture import build_model
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.optim.param_groups import param_groups
from nanochat_lit.optim.polar import POLAR_EXPRESS_COEFFICIENTS
from nanochat_lit.optim.sharding import MIN_SHARDED_ELEMENTS, Shards


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Of one optimizer step, for the rank that has most to do."""

    sent_bytes: int
    """Gradients on their way to their mean and, under zero, parameters on their way back, by rings."""
    muon_flops: int
    """Products that make the matrices' updates orthogonal."""


def step_costs(
    config: GPTConfig, *, strategy: str, world_size: int, compute_dtype: torch.dtype = torch.bfloat16
) -> StepCosts:
    """Count what `MuonAdamW.step` sends and multiplies; gradient accumulation adds nothing to either.

    A ring passes a tensor on in N - 1 pieces of its N, once to scatter the mean and once to gather: so an all-reduce (ddp) and
    a reduce-scatter with an all-gather (zero) send the same, but zero divides whole matrices and rows, and pads them.

    Args:
        config: Shape of the model.
        strategy: "ddp" (every rank updates everything) or "zero" (each its share).
        world_size: Ranks.
        compute_dtype: Of activations; tables are stored in it.
    """
    with torch.device("meta"):
        model = build_model(config, compute_dtype=compute_dtype)
    shards = Shards(0, world_size if strategy == "zero" else 1)
    sent = flops = 0
    for group in param_groups(model):
        if group["kind"] == "muon":
            matrices: list[torch.Tensor] = group["params"]
            own = len(range(len(matrices))[shards.span(len(matrices))])
            sent += own * shards.world_size * _bytes(matrices[0])
            flops += own * _polar_flops(*matrices[0].shape)
        else:
            sent += sum(_padded_bytes(parameter, shards) for parameter in group["params"])
    return StepCosts(sent_bytes=2 * sent * (world_size - 1) // world_size, muon_flops=flops)


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def _padded_bytes(parameter: torch.Tensor, shards: Shards) -> int:
    """Of a tensor that AdamW updates; the first rank has the most rows."""
    if parameter.numel() < MIN_SHARDED_ELEMENTS:
        return _bytes(parameter)
    rows = shards.span(len(parameter)).stop
    return rows * shards.world_size * _bytes(parameter) // len(parameter)


def _polar_flops(num_rows: int, num_columns: int) -> int:
    """Of one matrix: three products an iteration, the Gram matrix on its short side."""
    short, long = sorted((num_rows, num_columns))
    return len(POLAR_EXPRESS_COEFFICIENTS) * 2 * (2 * short * short * long + short**3)

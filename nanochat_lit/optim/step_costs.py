"""What an optimizer step costs a rank beside forward and backward pass: bytes sent, and Muon's arithmetic. On paper."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.model.architecture import build_model
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.optim.exchange import Bucket, Exchange, muon_flops
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
    a reduce-scatter with an all-gather (zero) send the same. Zero also moves what a rank holds of other ranks' matrices.

    Args:
        config: Shape of the model.
        strategy: "ddp" (every rank updates everything) or "zero" (each its share).
        world_size: Ranks.
        compute_dtype: Of activations; tables are stored in it.
    """
    with torch.device("meta"):
        model = build_model(config, compute_dtype=compute_dtype)
    groups = param_groups(model)
    stacks: list[list[Tensor]] = [group["params"] for group in groups if group["kind"] == "muon"]
    shards = Shards(0, world_size if strategy == "zero" else 1)
    exchange = Exchange(stacks, [], shards)
    flops = [0] * world_size
    for matrix in (matrix for stack in stacks for matrix in stack):
        flops[exchange.owner(matrix)] += len(POLAR_EXPRESS_COEFFICIENTS) * muon_flops(*matrix.shape)
    rows = [parameter for group in groups if group["kind"] == "adamw" for parameter in group["params"]]
    sent = sum(_padded_bytes(parameter, shards) for parameter in rows)
    sent += sum(bucket.piece * shards.world_size * bucket.parameters[0].element_size() for bucket in exchange.buckets)
    moved = max(_moved_bytes(exchange.buckets, rank) for rank in range(shards.world_size))
    return StepCosts(sent_bytes=2 * sent * (world_size - 1) // world_size + moved, muon_flops=max(flops))


def _moved_bytes(buckets: list[Bucket], rank: int) -> int:
    """What a rank holds of others' matrices, and others of its own, which it sends back."""
    moved = 0
    for bucket in buckets:
        held, owned = bucket.moves[rank], [row[rank] for row in bucket.moves]
        moved += (sum(held) + sum(owned) - 2 * held[rank]) * bucket.parameters[0].element_size()
    return moved


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def _padded_bytes(parameter: torch.Tensor, shards: Shards) -> int:
    """Of a tensor that AdamW updates; the first rank has the most rows."""
    if parameter.numel() < MIN_SHARDED_ELEMENTS:
        return _bytes(parameter)
    rows = shards.span(len(parameter)).stop
    return rows * shards.world_size * _bytes(parameter) // len(parameter)

"""Estimated cost of an optimizer step per rank: bytes sent, and Muon's FLOPs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.model.architecture import build_model
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.optim.build import param_groups
from nanochat_lit.optim.polar import POLAR_EXPRESS_COEFFICIENTS
from nanochat_lit.optim.sharding import MIN_SHARDED_ELEMENTS, Bucket, Exchange, Shards, muon_flops


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Costs of one optimizer step on the busiest rank."""

    sent_bytes: int
    """Bytes sent to average gradients and, under zero, to gather parameters, with ring algorithms."""
    muon_flops: int
    """FLOPs of Muon's orthogonalisation."""


def step_costs(
    config: GPTConfig, *, strategy: str, world_size: int, compute_dtype: torch.dtype = torch.bfloat16
) -> StepCosts:
    """Estimate the bytes sent and FLOPs of `MuonAdamW.step`; independent of gradient accumulation.

    A ring sends (N - 1) / N of a tensor to scatter the mean, and as much to gather. An all-reduce ("ddp", where every
    rank updates everything) and a reduce-scatter plus all-gather ("zero", where each updates its shard) thus send the
    same number of bytes. Zero additionally moves parts of other ranks' matrices.
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
    """Return the bytes of other ranks' matrices on a rank, plus those of its own matrices on other ranks."""
    moved = 0
    for bucket in buckets:
        held, owned = bucket.moves[rank], [row[rank] for row in bucket.moves]
        moved += (sum(held) + sum(owned) - 2 * held[rank]) * bucket.parameters[0].element_size()
    return moved


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def _padded_bytes(parameter: torch.Tensor, shards: Shards) -> int:
    """Return the padded size of an AdamW tensor; the first rank has the most rows."""
    if parameter.numel() < MIN_SHARDED_ELEMENTS:
        return _bytes(parameter)
    rows = shards.span(len(parameter)).stop
    return rows * shards.world_size * _bytes(parameter) // len(parameter)

"""Communication of a sharded optimizer: gradients to the owner of a parameter, updated parameters back.

Muon needs whole matrices, so each matrix has one owner. For every shape, N matrices at a time are assigned to the N
ranks; the remainders of all shapes are assigned by the cost of their update. Matrices are sent in flat buckets, ordered
by owner. A reduce-scatter splits a bucket into equal chunks, padded by less than N elements. If owners have unequal
shares, an all-to-all then moves the parts of other ranks' matrices. The way back is the reverse.

Averaging can start in the backward pass (`Exchange.expect_step`), for each bucket once its last gradient is ready.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_lit.common.distributed import collective
from nanochat_lit.common.torch_internals import version_of
from nanochat_lit.optim.sharding import Pending, Shards

BUCKET_ELEMENTS = 1 << 25
"""Minimum number of elements per bucket; smaller messages waste bandwidth, larger ones start later."""


def deal(costs: Sequence[float], world_size: int) -> list[int]:
    """Assign items to ranks: the most expensive first, each to the rank with the least work."""
    owners, loads = [0] * len(costs), [0.0] * world_size
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        owners[item] = min(range(world_size), key=loads.__getitem__)
        loads[owners[item]] += costs[item]
    return owners


def muon_flops(num_rows: int, num_columns: int) -> int:
    """Return the FLOPs of one iteration of Muon's orthogonalisation: three matmuls, Gram matrix on the short side."""
    short, long = sorted((num_rows, num_columns))
    return 2 * (2 * short * short * long + short**3)


class Bucket:
    """Matrices that are sent in one message.

    Args:
        matrices: Matrices in any order.
        owners: Rank that updates each matrix.
        shards: Rank and world size.
    """

    def __init__(self, matrices: Sequence[Tensor], owners: Sequence[int], shards: Shards) -> None:
        order = sorted(range(len(matrices)), key=owners.__getitem__)
        self.parameters = [matrices[at] for at in order]
        self._shards = shards
        counts = [0] * shards.world_size
        for matrix, owner in zip(matrices, owners, strict=True):
            counts[owner] += matrix.numel()
        bounds = [0, *accumulate(counts)]
        self._own = [matrices[at] for at in order if owners[at] == shards.rank]
        self._num_elements = bounds[-1]
        self.piece = -(-bounds[-1] // shards.world_size)
        self.moves = [
            [
                max(0, min(end, (holder + 1) * self.piece) - max(start, holder * self.piece))
                for start, end in pairwise(bounds)
            ]
            for holder in range(shards.world_size)
        ]
        """Number of elements that a rank (row) has after the reduce-scatter, by owner (column)."""
        self._is_aligned = all(self.moves[at][at] == sum(self.moves[at]) for at in range(shards.world_size))

    def average(self, gradients: Sequence[Tensor]) -> Pending:
        """Start averaging the gradients; each rank receives one chunk."""
        flat = gradients[0].new_zeros(self.piece * self._shards.world_size)
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=flat[: self._num_elements])
        assert len(gradients) == len(self.parameters), "every matrix of a bucket needs a gradient"
        piece = flat.new_empty(self.piece)
        return Pending(piece, collective("reduce_scatter_single")(piece, flat, op=dist.ReduceOp.AVG, async_op=True))

    def own_gradients(self, average: Pending) -> list[tuple[Tensor, Tensor]]:
        """Return this rank's matrices with their averaged gradients."""
        sent, received = self._splits()
        flat = self._move(average.wait(), sent, received)
        parts = flat[: sum(matrix.numel() for matrix in self._own)].split([matrix.numel() for matrix in self._own])
        return [(matrix, part.view(matrix.shape)) for matrix, part in zip(self._own, parts, strict=True)]

    def gather(self) -> Callable[[], None]:
        """Start to gather the updated matrices; the returned function waits and writes them."""
        sent, received = self._splits()
        flat = self.parameters[0].new_zeros(self.piece if self._is_aligned else sum(received))
        if self._own:
            torch.cat([matrix.reshape(-1) for matrix in self._own], out=flat[: sum(received)])
        piece = flat.new_zeros(self.piece)
        piece[: sum(sent)] = self._move(flat, received, sent)[: sum(sent)]
        whole = flat.new_empty(self.piece * self._shards.world_size)
        pending = Pending(whole, collective("all_gather_single")(whole, piece, async_op=True))

        def write() -> None:
            parts = pending.wait()[: self._num_elements].split([matrix.numel() for matrix in self.parameters])
            for matrix, part in zip(self.parameters, parts, strict=True):
                matrix.copy_(part.view(matrix.shape))

        return write

    def _splits(self) -> tuple[list[int], list[int]]:
        """Return the element counts of this rank's chunk by owner, and of its matrices by the rank that has them."""
        rank = self._shards.rank
        return self.moves[rank], [held[rank] for held in self.moves]

    def _move(self, flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
        if self._is_aligned:
            return flat
        out = flat.new_empty(sum(received))
        dist.all_to_all_single(out, flat[: sum(sent)], received, sent)
        return out


@dataclass
class _Message:
    """Gradients that are averaged in one message."""

    parameters: list[Tensor]
    send: Callable[[list[Tensor]], Pending]
    pending: Pending | None = None
    versions: Sequence[tuple[Tensor | None, int]] = ()
    num_missing: int = 0

    def start(self) -> None:
        """Send the gradients, unless the same values were sent already; clipping, for example, changes them."""
        versions = [
            (parameter.grad, -1 if parameter.grad is None else version_of(parameter.grad))
            for parameter in self.parameters
        ]
        if self.pending is not None:
            if all(
                new is old and at == before for (new, at), (old, before) in zip(versions, self.versions, strict=True)
            ):
                return
            self.pending.wait()
        self.pending = self.send([gradient for gradient, _ in versions if gradient is not None])
        self.versions = versions

    def take(self) -> Pending:
        """Return the pending average, once."""
        pending, self.pending, self.versions = self.pending, None, ()
        assert pending is not None, "take() before start()"
        return pending


class Exchange:
    """All messages of a sharded optimizer.

    Args:
        stacks: Muon's groups of matrices, each from the first layer to the last.
        tables: Tensors that are sharded by rows, likewise grouped.
        shards: Rank and world size.
    """

    def __init__(self, stacks: Sequence[Sequence[Tensor]], tables: Sequence[Sequence[Tensor]], shards: Shards) -> None:
        self._owner: dict[int, int] = {}
        self.buckets = [
            Bucket(part, [self._owner[id(matrix)] for matrix in part], shards)
            for part in self._parts(stacks, shards.world_size)
        ]
        self._messages = {id(bucket): _Message(bucket.parameters, bucket.average) for bucket in self.buckets}
        places = _places(tables)
        for table in sorted((table for group in tables for table in group), key=lambda table: places[id(table)]):
            self._messages[id(table)] = _Message([table], lambda gradients: shards.average(gradients[0]))
        self._queue: list[_Message] = []
        for message in self._messages.values():
            for parameter in message.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, message=message: self._arrived(message))

    def _parts(self, stacks: Sequence[Sequence[Tensor]], world_size: int) -> list[list[Tensor]]:
        """Assign all matrices; return those of each bucket, in the order in which a backward pass completes them."""
        rounds: list[list[Tensor]] = []
        rest: list[list[Tensor]] = []
        for stack in stacks:
            last_first, whole = list(reversed(stack)), len(stack) // world_size * world_size
            rounds += [last_first[at : at + world_size] for at in range(0, whole, world_size)]
            rest += [[matrix] for matrix in last_first[whole:]]
        for part in rounds:
            self._owner |= {id(matrix): rank for rank, matrix in enumerate(part)}
        owners = deal([muon_flops(*matrix.shape) for (matrix,) in rest], world_size)
        self._owner |= {id(matrix): owner for (matrix,), owner in zip(rest, owners, strict=True)}
        places = _places(stacks)

        def completed(part: list[Tensor]) -> float:
            return max(places[id(matrix)] for matrix in part)

        merged = [*_merge(sorted(rounds, key=completed)), *_merge(sorted(rest, key=completed))]
        return sorted(merged, key=completed)

    def owner(self, matrix: Tensor) -> int:
        """Return the rank that updates a matrix."""
        return self._owner[id(matrix)]

    def expect_step(self) -> None:
        """Start averages during the next backward pass, the last one before a step."""
        self._queue = list(self._messages.values())
        for message in self._queue:
            message.num_missing = len(message.parameters)

    def _arrived(self, message: _Message) -> None:
        message.num_missing -= 1
        while self._queue and self._queue[0].num_missing <= 0:  # same order on all ranks
            self._queue.pop(0).start()

    def start(self) -> None:
        """Start the remaining averages of all parameters with gradients."""
        self._queue = []
        for message in self._messages.values():
            if any(parameter.grad is not None for parameter in message.parameters):
                message.start()

    def average_of_rows(self, table: Tensor) -> Tensor:
        """Return this rank's rows of a tensor's averaged gradient."""
        return self._messages[id(table)].take().wait()

    def averages_of_matrices(self) -> dict[Tensor, Tensor]:
        """Return the averaged gradients of the matrices of this rank; empty without gradients."""
        if all(self._messages[id(bucket)].pending is None for bucket in self.buckets):
            return {}
        return dict(pair for bucket in self.buckets for pair in bucket.own_gradients(self._messages[id(bucket)].take()))


def _places(groups: Sequence[Sequence[Tensor]]) -> dict[int, float]:
    """Return when a backward pass completes each gradient, from 0 (last layer) to 1; 1 for groups of one tensor."""
    return {
        id(tensor): 1.0 - (at / len(group) if len(group) > 1 else 0.0)
        for group in groups
        for at, tensor in enumerate(group)
    }


def _merge(parts: Sequence[list[Tensor]]) -> list[list[Tensor]]:
    """Merge parts until they have BUCKET_ELEMENTS."""
    merged: list[list[Tensor]] = []
    for part in parts:
        if not merged or sum(tensor.numel() for tensor in merged[-1]) >= BUCKET_ELEMENTS:
            merged.append([])
        merged[-1] += part
    return merged

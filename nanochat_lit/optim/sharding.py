"""Sharded optimizer state (Rajbhandari et al. 2020, ZeRO stage 1. https://arxiv.org/abs/1910.02054).

The rows of an embedding or of the unembedding are split into one span per rank. Gradients are averaged by a
reduce-scatter, each rank updates its span, and the spans are gathered. Messages are padded to equal spans; the stored
state is not.

Muon needs whole matrices, so each matrix has one owner. For every shape, N matrices at a time are assigned to the N
ranks; the remainders of all shapes are assigned by the cost of their update. Matrices are sent in flat buckets, ordered
by owner. A reduce-scatter splits a bucket into equal chunks, padded by less than N elements. If owners have unequal
shares, an all-to-all then moves the parts of other ranks' matrices. The way back is the reverse. Averaging can start in
the backward pass (`Exchange.expect_step`), for each bucket once its last gradient is ready.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_lit.common.distributed import collective
from nanochat_lit.common.torch_internals import version_of

MIN_SHARDED_ELEMENTS = 1024
"""Smaller tensors are updated on every rank, because a message costs more than the work it would save."""


class Pending(NamedTuple):
    """The result of an asynchronous collective."""

    tensor: Tensor  # result tensor; its contents are undefined before `wait`
    work: Any = None  # handle of the collective; None if it is complete

    def wait(self) -> Tensor:
        """Return the tensor once complete (on CUDA: once the current stream may read it)."""
        if self.work is not None:
            self.work.wait()  # gloo does not support get_future()
        return self.tensor


class Shards(NamedTuple):
    """Assigns rows to ranks; a single rank has all rows and does not communicate."""

    rank: int = 0  # rank of this process, from 0
    world_size: int = 1  # number of ranks

    def span(self, count: int) -> slice:
        """Return this rank's rows among `count`; empty on the last ranks if there are fewer rows than ranks."""
        size = self._size(count)
        return slice(min(self.rank * size, count), min((self.rank + 1) * size, count))

    def own(self, whole: Tensor) -> Tensor:
        """Return a view of this rank's rows."""
        return whole[self.span(len(whole))]

    def average(self, whole: Tensor) -> Pending:
        """Return this rank's rows of the mean over the ranks; does not modify `whole`."""
        if self.world_size == 1:
            return Pending(whole)
        count, size = len(whole), self._size(len(whole))
        padded = self._pad(whole.contiguous(), size * self.world_size)
        rows = whole.new_empty(size, *whole.shape[1:])
        work = collective("reduce_scatter_single")(rows, padded, op=dist.ReduceOp.AVG, async_op=True)
        span = self.span(count)
        return Pending(rows[: span.stop - span.start], work)

    def average_whole(self, whole: Tensor) -> Pending:
        """Return the full mean over the ranks on every rank; does not modify `whole`."""
        if self.world_size == 1:
            return Pending(whole)
        mean = whole.clone()
        return Pending(mean, dist.all_reduce(mean, op=dist.ReduceOp.AVG, async_op=True))

    def gather(self, own: Tensor, count: int, into: Tensor | None = None) -> Pending:
        """Gather all `count` rows; `into` receives them if no padding is needed, otherwise a new tensor is created."""
        if self.world_size == 1:
            return Pending(own)
        size = self._size(count)
        fits = into is not None and count == size * self.world_size and into.is_contiguous()
        whole = into if fits and into is not None else own.new_empty(size * self.world_size, *own.shape[1:])
        # A copy, because `own` may be a view of `into`, which not every backend allows.
        work = collective("all_gather_single")(whole, self._pad(own.clone(), size), async_op=True)
        return Pending(whole[:count], work)

    def gather_dealt(self, own: Tensor, owners: Sequence[int]) -> Tensor:
        """Gather all rows in order; `owners` are the ranks that have them."""
        most = max(map(owners.count, range(self.world_size)))
        whole = self.gather(own, most * self.world_size).wait()
        return whole[[rank * most + owners[:at].count(rank) for at, rank in enumerate(owners)]]

    def _size(self, count: int) -> int:
        return -(-count // self.world_size)

    @staticmethod
    def _pad(rows: Tensor, size: int) -> Tensor:
        if len(rows) == size:
            return rows
        return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def global_grad_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the L2 norm of the averaged gradients, float32, on their device.

    Under `zero` every rank has the gradients of its own batches until the optimizer steps, so this is a collective (a
    reduce-scatter of all gradients): call it on every rank, and only on logged steps. Under `ddp` and on one rank it is
    local.
    """
    shards: Shards = getattr(optimizer, "shards", Shards())
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    if shards.world_size == 1:
        return torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]).norm()
    divided = torch.zeros((), device=gradients[0].device)
    whole = torch.zeros_like(divided)
    for gradient in gradients:
        if gradient.numel() < MIN_SHARDED_ELEMENTS:
            whole += shards.average_whole(gradient).wait().float().square().sum()
        else:
            divided += shards.average(gradient).wait().float().square().sum()
    dist.all_reduce(divided)
    return (divided + whole).sqrt()


@torch.no_grad()
def clip_grad_norm(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `max_norm`; return the norm before scaling.

    Like `torch.nn.utils.clip_grad_norm_`, but correct under every strategy; collective under `zero`.
    """
    norm = global_grad_norm(optimizer)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.device))
    return norm


@torch.no_grad()
def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace local gradients by their mean over the ranks, in place; does nothing if they are already averaged.

    Needed to access individual gradient entries (clipping by value), but not before a step.
    """
    shards: Shards = getattr(optimizer, "shards", Shards())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and shards.world_size > 1:
                dist.all_reduce(parameter.grad, op=dist.ReduceOp.AVG)


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
    """Matrices that are sent in one message; `owners` are the ranks that update them."""

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

    `stacks` are Muon's groups of matrices, each from the first layer to the last; `tables`, likewise grouped, are
    tensors that are sharded by rows.
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
    merged: list[list[Tensor]] = []
    for part in parts:
        if not merged or sum(tensor.numel() for tensor in merged[-1]) >= BUCKET_ELEMENTS:
            merged.append([])
        merged[-1] += part
    return merged

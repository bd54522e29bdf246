"""Sharded optimizer state (Rajbhandari et al. 2020, ZeRO stage 1. https://arxiv.org/abs/1910.02054).

The rows of an embedding or of the unembedding are split into one span per rank. Gradients are averaged by a
reduce-scatter, each rank updates its span, and the spans are gathered. Messages are padded to equal spans; the stored
state is not. Muon's matrices are assigned as a whole (exchange.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_lit.common.distributed import collective

MIN_SHARDED_ELEMENTS = 1024
"""Smaller tensors are updated on every rank, because a message costs more than the work it would save."""


@dataclass(frozen=True)
class Pending:
    """The result of an asynchronous collective."""

    tensor: Tensor
    """Result tensor; its contents are undefined before `wait`."""
    work: Any = None
    """Handle of the collective; None if it is complete."""

    def wait(self) -> Tensor:
        """Return the tensor once complete (on CUDA: once the current stream may read it)."""
        if self.work is not None:
            self.work.wait()  # gloo does not support get_future()
        return self.tensor


@dataclass(frozen=True)
class Shards:
    """Assigns rows to ranks; a single rank has all rows and does not communicate."""

    rank: int = 0
    """Rank of this process, from 0."""
    world_size: int = 1
    """Number of ranks."""

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
        """Gather all `count` rows.

        Args:
            own: This rank's rows.
            count: Number of rows of all ranks.
            into: Output tensor, used if no padding is needed; otherwise a new tensor is created.
        """
        if self.world_size == 1:
            return Pending(own)
        size = self._size(count)
        fits = into is not None and count == size * self.world_size and into.is_contiguous()
        whole = into if fits and into is not None else own.new_empty(size * self.world_size, *own.shape[1:])
        # A copy, because `own` may be a view of `into`, which not every backend allows.
        work = collective("all_gather_single")(whole, self._pad(own.clone(), size), async_op=True)
        return Pending(whole[:count], work)

    def gather_dealt(self, own: Tensor, owners: Sequence[int]) -> Tensor:
        """Gather all rows in order from their owners.

        Args:
            own: This rank's rows.
            owners: Owner rank of each row.
        """
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

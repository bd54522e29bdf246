"""Distribution of an evaluation over ranks: each takes every world_size-th example, and all get all results."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_lit.common.distributed import world_size


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors on every rank; the tensor itself without a process group."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def joined_shares(own: list[Any]) -> list[Any]:
    """Return all results in the original order on every rank; `own` are those of every world_size-th item, from this rank's on."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    shares: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(shares, own)
    return [share[round_] for round_ in range(len(shares[0])) for share in shares if round_ < len(share)]


def from_rank_zero(value: Any) -> Any:
    """Return rank 0's value, plain data, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def joined_ranks() -> Iterator[torch.device | None]:
    """Initialize a process group for torchrun or srun, for commands without a Trainer.

    Yields:
        The GPU of this process, or None for a single process or without GPUs.
    """
    if world_size() == 1 or dist.is_initialized():
        yield None
        return
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = None if accelerator is None else torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK") or 0))
    if device is not None:
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group("gloo" if device is None else dist.get_default_backend_for_device(device))
    try:
        yield device
    finally:
        dist.destroy_process_group()

"""Dividing an evaluation among processes: each takes every world_size-th example, all end with all results."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_lit.common.distributed import world_size


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, on every rank; the tensor itself without a process group.

    Args:
        tensor: As large on every rank, on the device that the process group works with.
    """
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def joined_shares(own: list[Any]) -> list[Any]:
    """What all ranks have made of their shares, in the order of the whole, on every rank.

    Args:
        own: Of this rank, whose share is every world_size-th from its number on; plain data.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return own
    shares: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(shares, own)
    return [share[round_] for round_ in range(len(shares[0])) for share in shares if round_ < len(share)]


def from_rank_zero(value: Any) -> Any:
    """What rank 0 holds, on every rank.

    Args:
        value: Plain data; of other ranks it is ignored.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def joined_ranks() -> Iterator[torch.device | None]:
    """Join the processes that torchrun or srun has started, for a command that no Trainer runs.

    Yields:
        The GPU of this process, or None where there is a single process, or no GPU.
    """
    if world_size() == 1 or dist.is_initialized():
        yield None
        return
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = None if accelerator is None else torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
    if device is not None:
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group("gloo" if device is None else dist.get_default_backend_for_device(device))
    try:
        yield device
    finally:
        dist.destroy_process_group()

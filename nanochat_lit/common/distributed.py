"""Rank and world size, also before a process group exists; and evaluations that each rank does a share of.

Sources in order: torch.distributed if initialized; else the environment variables of torchrun, then of SLURM's srun
(some rank-dependent decisions precede the process group); else a single process.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_lit.common.errors import UserError


def rank() -> int:
    """Index of this process among all ranks, from 0."""
    return dist.get_rank() if _initialized() else _from_environment("RANK", "SLURM_PROCID", default=0)


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if _initialized() else _from_environment("WORLD_SIZE", "SLURM_NTASKS", default=1)


def is_rank_zero() -> bool:
    """Return whether this is the process that prints and writes files."""
    return rank() == 0


def say(text: str) -> None:
    """Print a line to stderr, on rank 0 only."""
    if is_rank_zero():
        print(text, file=sys.stderr)  # noqa: T201 - reports of a run


def collective(name: str) -> Callable[..., Any]:
    """Return reduce_scatter_single or all_gather_single; torch before 2.13 has only their old names."""
    old = {"reduce_scatter_single": "reduce_scatter_tensor", "all_gather_single": "all_gather_into_tensor"}
    return getattr(dist, name if hasattr(dist, name) else old[name])


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _from_environment(name: str, slurm_name: str, default: int) -> int:
    if not os.environ.get(name) and is_srun():
        name = slurm_name
    value = os.environ.get(name, "")
    if not value:
        return default
    try:
        return int(value)
    except ValueError:
        raise UserError(
            f"environment variable {name}={value!r} is not an integer; unset it or let torchrun set it"
        ) from None


def is_srun() -> bool:
    """Return whether srun started this process; an interactive shell in an allocation has the variables too."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors on every rank; the tensor itself without a process group."""
    if _initialized():
        dist.all_reduce(tensor)
    return tensor


def joined_shares(own: list[Any]) -> list[Any]:
    """Return all results in the original order on every rank; `own` are those of every world_size-th item, from this rank's on."""
    if not _initialized():
        return own
    shares: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(shares, own)
    return [share[round_] for round_ in range(len(shares[0])) for share in shares if round_ < len(share)]


def from_rank_zero(value: Any) -> Any:
    """Return rank 0's value, plain data, on every rank."""
    if not _initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def joined_ranks() -> Iterator[torch.device | None]:
    """Initialize a process group for torchrun or srun, for commands without a Trainer; yield this process's GPU.

    None for a single process or without GPUs.
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

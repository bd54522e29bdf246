"""Rank and world size, also before a process group exists.

Sources in order: torch.distributed if initialized; else the environment variables of torchrun, then of SLURM's srun
(some rank-dependent decisions precede the process group); else a single process.
"""

import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

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


def collective(name: str) -> Callable[..., Any]:
    """Return a collective of torch.distributed by its newest name; torch before 2.13 has only the old name.

    Args:
        name: reduce_scatter_single or all_gather_single.
    """
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

"""Which process this is, whether or not a process group exists yet.

Order: torch.distributed when it is initialised; else the variables torchrun sets (rank-dependent decisions such as
"who writes the file" are taken before the process group is up); else a single process.
"""

import os

import torch.distributed as dist

from nanochat_lit.common.errors import UserError


def rank() -> int:
    """Index of this process among all ranks, from 0."""
    return dist.get_rank() if _initialized() else _from_environment("RANK", default=0)


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if _initialized() else _from_environment("WORLD_SIZE", default=1)


def is_rank_zero() -> bool:
    """True on the one process that prints and writes files."""
    return rank() == 0


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if not value:
        return default
    try:
        return int(value)
    except ValueError:
        raise UserError(
            f"environment variable {name}={value!r} is not a whole number; unset it or let torchrun set it"
        ) from None

"""How much memory is free for this process, of the machine and of a GPU."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_lit.common.errors import UserError

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Memory that can be taken without swapping, within a container's limit if there is one.

    Args:
        meminfo: Linux's list of what the machine has.
        cgroup: Folder of this container's limits (cgroup v2).

    Raises:
        UserError: If the system does not say, as Windows to Python.
    """
    available = _from_meminfo(meminfo)
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    return available if limit is None else min(available, limit - (used or 0))


def free_memory_bytes(device: "torch.device") -> int | None:
    """Memory of a device that tensors can take; None where the system does not say.

    Args:
        device: A GPU with memory of its own (cuda, xpu), or cpu and mps, which share the machine's.
    """
    if device.type in ("cpu", "mps"):
        return available_memory_bytes() if hasattr(os, "sysconf") else None
    import torch

    module = torch.get_device_module(device.type)
    free, _ = module.mem_get_info(device)  # and what this process has taken from the driver, but no tensor uses
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def total_memory_bytes(device: "torch.device") -> int:
    """Memory of a GPU: its own, or what macOS recommends as the most that it takes of the machine's."""
    import torch

    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.get_device_module(device.type).get_device_properties(device).total_memory


def _from_meminfo(meminfo: Path) -> int:
    if meminfo.exists():
        for line in meminfo.read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if not hasattr(os, "sysconf"):
        raise UserError(
            f"how much memory is free is not known on {sys.platform}; give a number in place of 'auto' "
            "(--data.micro_batch_size 8)"
        )
    # Not Linux: physical memory, of which half is taken to be in use.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit

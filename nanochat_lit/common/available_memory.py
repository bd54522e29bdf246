"""Free memory of the machine and of GPUs."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_lit.common.errors import UserError

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Return the memory available without swapping, within a container's limit if there is one.

    Args:
        meminfo: Linux's /proc/meminfo.
        cgroup: Folder of this container's limits (cgroup v2).

    Raises:
        UserError: If the system does not report it (Windows).
    """
    available = _from_meminfo(meminfo)
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    return available if limit is None else min(available, limit - (used or 0))


def free_memory_bytes(device: "torch.device") -> int | None:
    """Return the memory available for tensors on a device; None if the system does not report it.

    Args:
        device: A GPU with its own memory (cuda, xpu), or cpu and mps, which share the machine's.
    """
    if device.type in ("cpu", "mps"):
        return available_memory_bytes() if hasattr(os, "sysconf") else None
    import torch

    module = torch.get_device_module(device.type)
    free, _ = module.mem_get_info(device)  # plus memory cached by this process's allocator
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def total_memory_bytes(device: "torch.device") -> int:
    """Return the memory of a GPU, or macOS's recommended maximum of shared memory."""
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
            f"the free memory is unknown on {sys.platform}; set a number instead of 'auto' (--data.micro_batch_size 8)"
        )
    # Not Linux: assumes that half of the physical memory is in use.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit

"""How much memory this process has held at most."""

import sys
from pathlib import Path

import torch


def peak_memory_bytes(device: str | torch.device = "cpu", status: Path = Path("/proc/self/status")) -> int:
    """Most memory that was held at once: by tensors on a GPU that counts them (CUDA, ROCm, XPU), else by this process (its resident pages).

    Args:
        device: Where the tensors are.
        status: Linux's account of a process.

    Returns:
        Bytes; 0 where the system does not say (Windows).
    """
    device = torch.device(device)
    if device.type != "cpu" and (
        measured := getattr(torch.get_device_module(device.type), "max_memory_allocated", None)
    ):
        return measured(device)
    if status.exists():  # getrusage would give the peak of the process that started this one, if that was higher
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_text(num_bytes: int) -> str:
    """Such as "1.51 GiB", or "unknown" for 0."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes else "unknown"

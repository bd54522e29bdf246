"""Peak memory of this process."""

import sys
from pathlib import Path

import torch


def peak_memory_bytes(device: str | torch.device = "cpu", status: Path = Path("/proc/self/status")) -> int:
    """Return the peak memory of tensors on a GPU (CUDA, ROCm, XPU), else of the process (resident pages).

    Returns:
        Bytes; 0 if the system does not report it (Windows).
    """
    device = torch.device(device)
    if device.type != "cpu" and (
        measured := getattr(torch.get_device_module(device.type), "max_memory_allocated", None)
    ):
        return measured(device)
    if status.exists():  # getrusage includes the peak of the parent process before exec
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_text(num_bytes: int) -> str:
    """Format bytes, such as "1.51 GiB", or "unknown" for 0."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes else "unknown"

"""Description of the machine: processor, memory, GPUs, versions."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from nanochat_lit import __version__


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return names and values for a report, without host name, user or address.

    Args:
        cpuinfo: Linux's /proc/cpuinfo.
    """
    description = {
        "processor": f"{_processor_name(cpuinfo)}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
    }
    if hasattr(os, "sysconf"):  # not on Windows
        description["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        counts = {name: names.count(name) for name in dict.fromkeys(names)}
        description["GPUs"] = ", ".join(f"{count} x {name}" for name, count in counts.items())
        description["CUDA"] = str(torch.version.cuda)
    description["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    description["versions"] = (
        f"nanochat-lit {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    with contextlib.suppress(PackageNotFoundError):
        description["versions"] += f", lightning {version('lightning')}"
    return description


def _processor_name(cpuinfo: Path) -> str:
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

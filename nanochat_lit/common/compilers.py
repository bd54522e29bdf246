"""Can torch.compile work here? It writes C++ for CPUs and Triton for GPUs, and others must build it."""

import os
import platform
import shutil
from importlib.util import find_spec

TRITON_DEVICES = ("cuda", "xpu")
"""Kinds of device that Triton builds kernels for; "cuda" is torch's word for ROCm, too."""


def has_cpp_compiler() -> bool:
    """True if torch.compile can work on this CPU: it writes C++ and needs a compiler to build it."""
    configured = os.environ.get("CXX", "")
    if configured:
        return shutil.which(configured.split()[0]) is not None
    candidates = ("cl",) if platform.system() == "Windows" else ("g++", "clang++", "c++")
    return any(shutil.which(name) for name in candidates)


def has_c_compiler() -> bool:
    """Whether Triton can build the launchers of its kernels, which it does with a C compiler."""
    configured = os.environ.get("CC", "")
    if configured:
        return shutil.which(configured.split()[0]) is not None
    return any(shutil.which(name) for name in ("gcc", "clang", "cc", "cl"))


def has_triton() -> bool:
    """Whether Triton, which builds kernels for GPUs, is installed."""
    return find_spec("triton") is not None


def missing_compiler(device_type: str) -> str:
    """What torch.compile lacks on a kind of device, in words; empty if nothing.

    Args:
        device_type: "cuda" (ROCm included), "xpu", "cpu" or another of torch's words.
    """
    if device_type not in (*TRITON_DEVICES, "cpu"):
        return f"it is not used on {device_type}"
    if device_type in TRITON_DEVICES and not has_triton():
        return "Triton is not installed"
    if device_type in TRITON_DEVICES and not has_c_compiler():
        return "Triton needs a C compiler (gcc or clang)"
    return "" if has_cpp_compiler() else "there is no C++ compiler (g++ or clang++)"

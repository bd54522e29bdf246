"""Can torch.compile work here? It writes C++ for CPUs and Triton for GPUs, and others must build it."""

import hashlib
import os
import platform
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

from nanochat_lit.common.paths import atomic_write, user_cache


def cpp_compiler() -> list[str] | None:
    """Command of the C++ compiler: CXX, which may have several words ("ccache g++"), or one that is installed.

    Returns:
        Its words, the first one an existing program; None if there is none.
    """
    candidates = ("cl",) if platform.system() == "Windows" else ("g++", "clang++", "c++")
    for words in [_words(os.environ["CXX"])] if os.environ.get("CXX") else [[name] for name in candidates]:
        if words and (program := shutil.which(words[0])):
            return [program, *words[1:]]
    return None


TRITON_DEVICES = ("cuda", "xpu")
"""Kinds of device that Triton builds kernels for; "cuda" is torch's word for ROCm, too."""


def has_cpp_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return cpp_compiler() is not None


def _words(command: str) -> list[str]:
    if shutil.which(command):  # a path with spaces
        return [command]
    try:
        return shlex.split(command)
    except ValueError:  # a quote that is not closed
        return [command]


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
    return "" if has_cpp_compiler() else "no C++ compiler found (g++ or clang++)"


def use_configured_compiler() -> None:
    """Let TorchInductor run a CXX of several words, such as "ccache g++", through a script: it takes a program only."""
    compiler = cpp_compiler()
    if compiler is None or len(compiler) == 1 or "CXX" not in os.environ:
        return
    import torch._inductor.config as inductor

    text = f'#!/bin/sh\nexec {shlex.join(compiler)} "$@"\n'
    name = Path(next((word for word in reversed(compiler) if "++" in word), compiler[0])).name  # it looks for g++
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    script = user_cache() / "nanochat-lit" / "compilers" / key / name
    if not os.access(script, os.X_OK):
        with atomic_write(script, "w") as file:
            file.write(text)
        script.chmod(0o755)
    inductor.cpp.cxx = (None, str(script))

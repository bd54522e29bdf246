"""Detects the compilers that torch.compile needs: C++ for CPUs, Triton for GPUs."""

import hashlib
import os
import platform
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

from nanochat_lit.common.paths import atomic_write, cache_folder


def cpp_compiler() -> list[str] | None:
    """Return the command of the C++ compiler: CXX, which may have several words ("ccache g++"), or an installed one.

    Returns:
        Words of the command, beginning with an existing program; None without a compiler.
    """
    candidates = ("cl",) if platform.system() == "Windows" else ("g++", "clang++", "c++")
    for words in [_words(os.environ["CXX"])] if os.environ.get("CXX") else [[name] for name in candidates]:
        if words and (program := shutil.which(words[0])):
            return [program, *words[1:]]
    return None


TRITON_DEVICES = ("cuda", "xpu")
"""Device types supported by Triton; "cuda" includes ROCm."""


def has_cpp_compiler() -> bool:
    """Return whether a C++ compiler is installed, which torch.compile needs on a CPU."""
    return cpp_compiler() is not None


def _words(command: str) -> list[str]:
    if shutil.which(command):  # a path that contains spaces
        return [command]
    try:
        return shlex.split(command)
    except ValueError:  # unbalanced quotes
        return [command]


def has_c_compiler() -> bool:
    """Return whether a C compiler is installed, which Triton needs for kernel launchers."""
    configured = os.environ.get("CC", "")
    if configured:
        return shutil.which(configured.split()[0]) is not None
    return any(shutil.which(name) for name in ("gcc", "clang", "cc", "cl"))


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


def missing_compiler(device_type: str) -> str:
    """Return what torch.compile lacks on a device type, as text; empty if nothing.

    Args:
        device_type: A torch device type, such as "cuda" (including ROCm), "xpu" or "cpu".
    """
    if device_type not in (*TRITON_DEVICES, "cpu"):
        return f"torch.compile is not supported on {device_type}"
    if device_type in TRITON_DEVICES and not has_triton():
        return "Triton is not installed"
    if device_type in TRITON_DEVICES and not has_c_compiler():
        return "Triton needs a C compiler (gcc or clang)"
    return "" if has_cpp_compiler() else "no C++ compiler found (g++ or clang++)"


def use_configured_compiler() -> None:
    """Wrap a CXX of several words ("ccache g++") in a script, because TorchInductor expects a single program."""
    compiler = cpp_compiler()
    if compiler is None or len(compiler) == 1 or "CXX" not in os.environ:
        return
    from nanochat_lit.common.torch_internals import set_inductor_compiler

    text = f'#!/bin/sh\nexec {shlex.join(compiler)} "$@"\n'
    name = Path(
        next((word for word in reversed(compiler) if "++" in word), compiler[0])
    ).name  # TorchInductor looks for g++
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    script = cache_folder() / "compilers" / key / name
    if not os.access(script, os.X_OK):
        with atomic_write(script, "w") as file:
            file.write(text)
        script.chmod(0o755)
    set_inductor_compiler(str(script))

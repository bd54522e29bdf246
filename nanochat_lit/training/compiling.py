"""Decides whether to use torch.compile, and sets its cache folder."""

import os
from pathlib import Path

from nanochat_lit.common.compilers import missing_compiler
from nanochat_lit.common.cpp_library import instructions
from nanochat_lit.common.paths import cache_folder
from nanochat_lit.model.loss_kernel import loss_library, loss_problem

CPU_COMPILE_PAYS_FLOPS = 8e12
"""Minimum length of a CPU run, FLOPs; in shorter runs, compiling (half a minute) takes more time than it saves."""


def decide_compile(mode: str, device_type: str, total_flops: float) -> tuple[bool, str]:
    """Return whether to compile, and a description of the reason.

    Args:
        mode: "auto", "true" or "false".
        device_type: A torch device type, such as "cuda" or "cpu".
        total_flops: FLOPs of the whole run.
    """
    if mode in ("true", "false"):
        return mode == "true", "on" if mode == "true" else "off"
    if missing := missing_compiler(device_type):
        return False, f"off: {missing}"
    if device_type == "cpu" and total_flops <= CPU_COMPILE_PAYS_FLOPS:
        return False, "off: the run is too short to benefit"
    return True, "on (the first step takes about a minute, less with a warm cache)"


def describe_kernels() -> str:
    """Return which kernels compute the loss and the optimizer step on a CPU, and why if not the C++ kernels."""
    library = loss_library()
    return f"PyTorch; not C++: {loss_problem()}" if library is None else f"{instructions(library)} (C++): loss, Muon"


def keep_compile_cache() -> Path:
    """Set a persistent TorchInductor cache folder, unless the user has set one.

    The default is a temporary folder. Call this before anything is compiled.

    Returns:
        The folder in use.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    os.environ[name] = os.environ.get(name) or str(cache_folder() / "inductor")
    return Path(os.environ[name])

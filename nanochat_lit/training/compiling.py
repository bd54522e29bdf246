"""When torch.compile pays, and where its results are kept between runs."""

import os
from pathlib import Path

from nanochat_lit.common.compilers import missing_compiler
from nanochat_lit.common.cpp_library import instructions
from nanochat_lit.common.paths import user_cache
from nanochat_lit.model.loss_kernel import loss_library, loss_problem

CPU_COMPILE_PAYS_FLOPS = 8e12
"""A CPU run shorter than this many operations would not earn back the half minute that compiling takes."""


def decide_compile(mode: str, device_type: str, total_flops: float) -> tuple[bool, str]:
    """Whether to compile, and why in words.

    Args:
        mode: "auto", "true" or "false".
        device_type: "cuda", "cpu" or another of torch's words.
        total_flops: Of the whole run.
    """
    if mode in ("true", "false"):
        return mode == "true", "on" if mode == "true" else "off"
    if missing := missing_compiler(device_type):
        return False, f"off: {missing}"
    if device_type == "cpu" and total_flops <= CPU_COMPILE_PAYS_FLOPS:
        return False, "off: the run is too short to earn it back"
    return True, "on (the first step takes a minute, less when it is cached)"


def describe_kernels() -> str:
    """What computes the loss and the optimizer's step on a CPU, and why it is not our C++ kernels if it is not."""
    library = loss_library()
    return f"PyTorch; not C++: {loss_problem()}" if library is None else f"{instructions(library)} (C++): loss, Muon"


def keep_compile_cache() -> Path:
    """Let TorchInductor keep compiled kernels where they outlive a reboot, unless the user has chosen a place.

    Its own default is a folder for temporary files. Call it before anything is compiled.

    Returns:
        The folder in use.
    """
    folder = user_cache() / "nanochat-lit"
    return Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor")))

"""When torch.compile pays, and where its results are kept between runs."""

import os
from pathlib import Path

from nanochat_lit.common.compilers import missing_compiler

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


def keep_compile_cache() -> Path:
    """Let TorchInductor keep compiled kernels where they outlive a reboot, unless the user has chosen a place.

    Its own default is a folder for temporary files. Call it before anything is compiled.

    Returns:
        The folder in use.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "nanochat-lit" / "inductor")))

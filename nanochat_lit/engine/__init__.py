"""Inference: sampling, tool calls, cached generation, the portable export it reads, the sandbox for model-written code."""

from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export, load_generation_defaults, save_export
from nanochat_lit.engine.sampling import sample_next
from nanochat_lit.engine.sandbox import SandboxLimits, SandboxResult, missing_isolation, run_python

__all__ = [
    "Engine",
    "SandboxLimits",
    "SandboxResult",
    "calculate",
    "load_export",
    "load_generation_defaults",
    "missing_isolation",
    "run_python",
    "sample_next",
    "save_export",
]

"""Inference: sampling, tool calls, cached generation, and the portable export it reads."""

from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export, load_generation_defaults, save_export
from nanochat_lit.engine.sampling import sample_next

__all__ = ["Engine", "calculate", "load_export", "load_generation_defaults", "sample_next", "save_export"]

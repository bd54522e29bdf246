"""Inference: sampling, tool calls, cached generation, the portable export it reads, the sandbox for model-written code."""

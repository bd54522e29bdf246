"""Inference: sampling, tool calls, cached generation, exports, and the sandbox for model-written code."""

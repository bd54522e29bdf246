"""Measures of a model: bits per byte, accuracy in the tiny world, sample completions."""

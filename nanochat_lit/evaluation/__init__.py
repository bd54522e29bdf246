"""Evaluation: bits per byte, CORE, ChatCORE, tiny world accuracy, sample completions."""

"""The short list of lengths that evaluation and decoding are padded to, so that a GPU meets few shapes."""

STEPS_PER_OCTAVE = 4
"""Lengths between a power of two and the next; at most a fifth of a padded length is padding."""

SMALLEST_STEP = 8


def padded_length(length: int, limit: int) -> int:
    """Rounds a length up to 8, 16, ... 56, 64, 80, 96, 112, 128, 160, ...: 28 lengths up to 2,048.

    Args:
        length: Tokens, at least 1 and at most the limit.
        limit: Longest length; the result never exceeds it.
    """
    step = max(SMALLEST_STEP, (1 << (length - 1).bit_length()) // (2 * STEPS_PER_OCTAVE))
    return min(-(-length // step) * step, limit)

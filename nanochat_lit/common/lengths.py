"""Padded lengths of evaluation and decoding, which limit the number of shapes on a GPU."""

STEPS_PER_OCTAVE = 4
"""Number of lengths per power of two; at most a fifth of a padded length is padding."""

SMALLEST_STEP = 8


def padded_length(length: int, limit: int) -> int:
    """Round a length up to 8, 16, ... 56, 64, 80, 96, 112, 128, 160, ...: 28 lengths up to 2,048.

    Args:
        length: Length in tokens, from 1 to the limit.
        limit: Maximum of the result.
    """
    step = max(SMALLEST_STEP, (1 << (length - 1).bit_length()) // (2 * STEPS_PER_OCTAVE))
    return min(-(-length // step) * step, limit)

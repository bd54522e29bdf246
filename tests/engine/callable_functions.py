"""Functions for tests of calls, well-behaved and not; their process imports this module."""

import os
import sys
import time


def echo(text: str, times: int = 1) -> str:
    """Repeat a text.

    This paragraph is not shown.
    """
    return text * times


def fail(reason: str) -> None:
    raise ValueError(reason)


def flood() -> str:
    print("x" * 1_000_000)
    sys.stderr.write("x" * 1_000_000)
    return "y" * 1_000_000


def hang() -> None:
    time.sleep(60)


def leave() -> None:
    os._exit(0)


def numbers(top: int) -> list[int]:
    return list(range(top))

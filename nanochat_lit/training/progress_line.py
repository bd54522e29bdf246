"""A progress line on stderr, updated in place in a terminal and appended otherwise."""

import math
import shutil
import sys
import time

REDRAW_S = 0.5
"""Minimum interval between updates of a transient line, seconds."""

BAR_WIDTH = 20


class ProgressLine:
    """Writes to stderr. `draw` replaces the previous transient line; `keep` prints a permanent one."""

    def __init__(self) -> None:
        self._drawn_at_s = -math.inf
        self._is_open = False

    @property
    def is_due(self) -> bool:
        """Return whether stderr is a terminal and the update interval has passed."""
        return sys.stderr.isatty() and time.monotonic() - self._drawn_at_s >= REDRAW_S

    def draw(self, text: str) -> None:
        """Show a transient line; permanent if stderr is not a terminal."""
        if not sys.stderr.isatty():
            self.keep(text)
            return
        width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be erased
        sys.stderr.write("\r\x1b[2K" + text[:width])
        sys.stderr.flush()
        self._is_open = True
        self._drawn_at_s = time.monotonic()

    def keep(self, text: str) -> None:
        """Print a permanent line."""
        sys.stderr.write(("\r\x1b[2K" if self._is_open else "") + text + "\n")
        sys.stderr.flush()
        self._is_open = False

    def close(self) -> None:
        """Finish the transient line with a newline."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False


def bar(share: float) -> str:
    """Return a progress bar for a fraction from 0 to 1."""
    full = round(BAR_WIDTH * min(1.0, max(0.0, share)))
    return "[" + "#" * full + "." * (BAR_WIDTH - full) + "]"


def duration(seconds: float) -> str:
    """Format a duration, such as 5m58s or 2h05m."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"

"""One line on stderr about a run: in a terminal it rewrites itself, piped it is a line of its own."""

import math
import shutil
import sys
import time

REDRAW_S = 0.5
"""Seconds between two drawings of a line that is not due to be kept."""

BAR_WIDTH = 20


class ProgressLine:
    """Writes to stderr. Lines that are drawn last until the next; lines that are kept stay on the screen."""

    def __init__(self) -> None:
        self._drawn_at_s = -math.inf
        self._is_open = False

    @property
    def is_due(self) -> bool:
        """Whether there is a terminal whose line has stood for a while."""
        return sys.stderr.isatty() and time.monotonic() - self._drawn_at_s >= REDRAW_S

    def draw(self, text: str) -> None:
        """Show a line until the next; piped it is kept."""
        if not sys.stderr.isatty():
            self.keep(text)
            return
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be taken back
        sys.stderr.write("\r\x1b[2K" + text[:width])
        sys.stderr.flush()
        self._is_open = True
        self._drawn_at_s = time.monotonic()

    def keep(self, text: str) -> None:
        """Show a line that stays."""
        sys.stderr.write(("\r\x1b[2K" if self._is_open else "") + text + "\n")
        sys.stderr.flush()
        self._is_open = False

    def close(self) -> None:
        """Leave what is drawn, so that others can write below it."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False


def bar(share: float) -> str:
    """A share of 1 as a bar."""
    full = round(BAR_WIDTH * min(1.0, max(0.0, share)))
    return "[" + "#" * full + "." * (BAR_WIDTH - full) + "]"


def duration(seconds: float) -> str:
    """5m58s, or 2h05m."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"

"""Progress line of downloads."""

import sys
import threading
import time
from collections.abc import Callable

Report = Callable[[int, int], None]
"""Callback with the numbers of newly completed files and received bytes."""


class DownloadProgress:
    """Progress line on stderr: updated in place in a terminal, otherwise printed every 30 seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_done = self._num_bytes = 0
        self._start_s = self._last_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def report(self, num_done: int, num_bytes: int) -> None:
        """Add completed files and received bytes."""
        with self._lock:
            self._num_done += num_done
            self._num_bytes += num_bytes
            now_s = time.monotonic()
            if now_s - self._last_s >= (0.2 if self._is_terminal else 30.0):
                self._last_s = now_s
                self._write("\r" if self._is_terminal else "", "" if self._is_terminal else "\n")

    def end(self) -> None:
        """Print the final line, if anything was received."""
        if self._num_bytes:
            self._write("\r" if self._is_terminal else "", "\n")

    def _write(self, before: str, after: str) -> None:
        elapsed_s = max(1e-9, time.monotonic() - self._start_s)
        rate = self._num_bytes / elapsed_s / 1e6
        line = f"{self._num_done} files complete, {self._num_bytes / 1e6:,.1f} MB fetched, {rate:,.1f} MB/s"
        sys.stderr.write(f"{before}{line:<60}".rstrip() + after)
        sys.stderr.flush()

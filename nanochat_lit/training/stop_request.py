"""Handles Ctrl-C and SIGTERM: the run finishes the step, saves and exits. A second signal exits immediately."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from nanochat_lit.common.streams import discard_output

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""SIGHUP is sent when the terminal closes; SIGUSR1 is commonly used by SLURM before the time limit. Not every system
has all of them."""


class StopRequest:
    """Listens for signals between `listen` and `ignore`.

    Attributes:
        signum: Number of the received signal, 0 before one arrives.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers; does nothing outside the main thread, where Python does not allow it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)
            is_nohup = name == "SIGHUP" and number and signal.getsignal(number) is signal.SIG_IGN
            if number and not is_nohup:
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def ignore(self) -> None:
        """Restore the previous handlers."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        text = f"\n{signal.Signals(signum).name}: finishing this step, then saving a checkpoint (send it again to stop immediately)\n"
        try:
            os.write(sys.stderr.fileno(), text.encode())  # print is not reentrant, and may be what was interrupted
        except (OSError, ValueError):  # the terminal is gone; a failed write must not end the run
            discard_output()

"""Ctrl-C and SIGTERM as a request: finish the step, save, go. A second one ends the process at once."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, cast

from lightning.pytorch import Trainer

from nanochat_lit.common.streams import discard_output

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""SIGHUP comes when the terminal is closed. SIGUSR1 is what SLURM is commonly told to send before the time is up; not every system has it."""


class StopRequest:
    """Listens for signals between `listen` and `ignore`.

    Attributes:
        signum: Number of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals over; does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)
            is_nohup = name == "SIGHUP" and number and signal.getsignal(number) is signal.SIG_IGN
            if number and not is_nohup:
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def ignore(self) -> None:
        """Give the signals back."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        text = f"\n{signal.Signals(signum).name}: finishing this step, then saving a checkpoint (once more: stop at once)\n"
        try:
            os.write(sys.stderr.fileno(), text.encode())  # print could be what was interrupted
        except (OSError, ValueError):  # the terminal is gone, and output must not be what ends the run
            discard_output()


def silence_lightning(trainer: Trainer) -> None:
    """Keep the Trainer from handling signals itself.

    Its handler kills the other ranks, broadcasts from inside the handler, requeues SLURM jobs from checkpoints that do not
    end with a step, and on several ranks asks for signals, with a wait for the GPU, in every micro-batch. Before training
    starts a signal just ends the process: there is nothing to save yet.
    """
    internals = cast(Any, trainer)
    internals._signal_connector.register_signal_handlers = lambda: None
    internals.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

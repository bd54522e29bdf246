"""Handling of standard streams that are closed, have a limited encoding, or lost their terminal."""

import contextlib
import errno
import io
import os
import sys
from typing import Any

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare_streams() -> None:
    """Open closed standard streams on the null device, and replace characters that an encoding lacks by "?".

    A closed descriptor would be reused for the next opened file, which would then receive the output.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            errors = "backslashreplace" if name == "stderr" else "replace"
            if mode == "w" and stream.isatty():
                raw = io.BufferedWriter(_Terminal(number, "w", closefd=False))
                setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=True))
            else:
                stream.reconfigure(errors=errors)


class _Terminal(io.FileIO):
    """A terminal that may be closed; later output is discarded, and the program continues.

    SIGHUP reaches only the terminal's own processes, not those detached from it (disown, setsid).
    """

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def discard_output() -> None:
    """Redirect stdout and stderr to the null device after their reader has exited or the disk is full."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(null, stream.fileno())
    os.close(null)

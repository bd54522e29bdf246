"""A lock on an open file, by whatever the system has."""

import contextlib
from typing import IO


def lock_file(file: IO[bytes] | IO[str]) -> None:
    """Wait until no other process holds this file, then hold it until it is closed or this process ends.

    Args:
        file: Open for writing.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        _lock_on_windows(file)
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _lock_on_windows(file: IO[bytes] | IO[str]) -> None:
    import msvcrt

    is_ours = False
    while not is_ours:
        file.seek(0)
        with contextlib.suppress(OSError):  # LK_LOCK gives up after ten seconds
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
            is_ours = True

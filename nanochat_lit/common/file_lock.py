"""A lock on an open file, by whatever the system has."""

import contextlib
from typing import IO


def lock_file(file: IO[bytes] | IO[str], *, wait: bool = True) -> bool:
    """Hold a file until it is closed or this process ends.

    Args:
        file: Open for writing.
        wait: Until no other process holds it.

    Returns:
        Whether it is held now; always if it waited.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_on_windows(file, wait)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_on_windows(file: IO[bytes] | IO[str], wait: bool) -> bool:
    import msvcrt

    while True:
        file.seek(0)
        with contextlib.suppress(OSError):  # LK_LOCK gives up after ten seconds
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        if not wait:
            return False

"""Locks on open files for POSIX and Windows."""

import contextlib
import os
from pathlib import Path
from typing import IO


def lock_file(file: IO[bytes] | IO[str], *, wait: bool = True) -> bool:
    """Lock a file until it is closed or this process ends.

    Args:
        file: File opened for writing.
        wait: Wait until no other process holds the lock.

    Returns:
        Whether the lock was acquired; always true with `wait`.
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


def try_hold_folder(folder: Path) -> int | None:
    """Lock a folder until the handle is closed or this process ends.

    Args:
        folder: Any folder.

    Returns:
        The handle; None if another process holds the lock or the system cannot lock folders.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def try_lock_for_process(file: IO[str]) -> bool:
    """Lock a file for this process only; forked processes do not inherit the lock.

    Args:
        file: File opened for writing. Closing any handle of the same file in this process releases the lock.

    Returns:
        Whether the lock was acquired; also true on file systems without locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_on_windows(file, wait=False)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
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

"""Locks on open files for POSIX and Windows."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nanochat_lit.common.errors import UserError

LOCK_FILE = ".lock"

_held: set[Path] = set()


@contextlib.contextmanager
def run_lock(folder: Path, command: str) -> Iterator[None]:
    """Lock a run folder until the block ends; the system releases the lock when the process dies.

    The lock is reentrant within a process. The folder is created if needed, and removed if it is empty afterwards.

    Args:
        folder: The run folder.
        command: Name of the command, shown to other processes.

    Raises:
        UserError: If another process holds it; includes its command and pid.
    """
    path = Path(os.path.realpath(folder)) / LOCK_FILE
    if path in _held:
        yield
        return
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+", encoding="utf-8") as file:
            if not try_lock_for_process(file):
                raise UserError(_refusal(folder, path))
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # the previous holder removed it meanwhile
            file.truncate(0)
            json.dump({"command": command, "pid": os.getpid(), "host": platform.node()}, file)
            file.flush()
            _held.add(path)
            try:
                yield
            finally:
                _held.discard(path)
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty, as expected
                    for parent in made:
                        parent.rmdir()
            return


def _refusal(folder: Path, path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        who = f"{holder['command']}, pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # still being written
        who = "another process"
    return f"{folder} is in use by {who}; wait for it, stop it, or choose another folder"


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

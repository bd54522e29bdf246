"""A lock that allows one process at a time in a run folder."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.file_lock import try_lock_for_process

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

"""Cache of compiled code; a file is loaded only if it is owned by this user and its checksum matches."""

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from nanochat_lit.common.file_lock import lock_file


def kept_code(path: Path, build: Callable[[Path], None]) -> Path:
    """Return a file of compiled code, built if missing, damaged or owned by another user.

    Its SHA-256 is stored next to it. Rebuilds are reported, unless the file was missing.

    Args:
        path: Path in the cache. If another user can write to its folder, a temporary folder is used instead.
        build: Writes the file at a given path.

    Returns:
        Path of the file.
    """
    path = _own_folder(path.parent) / path.name
    if _defect(path) is None:
        return path
    with path.with_suffix(".lock").open("w") as lock:
        lock_file(lock)  # waits for another process that builds it
        defect = _defect(path)
        if defect is not None:
            if path.exists() or path.is_symlink():
                _say(f"{path} {defect}; rebuilding it")
                path.unlink()
            build(path)
            path.chmod(0o700)
            path.with_suffix(".sha256").write_text(_hash(path), "utf-8")
    return path


@lru_cache(maxsize=8)
def _own_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    defect = _foreign(folder)
    if defect is None:
        return folder
    _say(
        f"{folder} {defect}; compiled code is built only for this process (set XDG_CACHE_HOME to a folder that you own)"
    )
    temporary = Path(tempfile.mkdtemp(prefix="nanochat-lit-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def _defect(path: Path) -> str | None:
    """Return why a cached file must not be loaded; None if it is valid."""
    try:
        return _foreign(path) or (
            None if path.with_suffix(".sha256").read_text("utf-8") == _hash(path) else "is damaged"
        )
    except (OSError, UnicodeDecodeError):
        return "is not complete"


def _foreign(path: Path) -> str | None:
    """Return why another user could have written a file or folder; None if impossible."""
    if not hasattr(os, "geteuid"):  # Windows
        return None
    for about in (path.lstat(), path.stat()):  # a link and its target
        if about.st_uid not in (os.geteuid(), 0):
            return "belongs to another user"
    return "can be written by other users" if path.stat().st_mode & 0o022 else None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the reason why a start is slow

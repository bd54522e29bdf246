"""Files that are either whole or absent: written under a temporary name, then renamed."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when the block ends without an error.

    The temporary file lies in the same folder, because a rename is atomic only within one file system. It is synced
    to disk before the rename: otherwise a power cut can leave the new name on an empty file.

    Args:
        path: Where the file shall be; its folder is created. An existing file is replaced.
        mode: "wb" or "w".
        encoding: For text; None means UTF-8.

    Yields:
        The open file.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_write: mode {mode!r} is not one of 'wb', 'w'")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, mode, encoding=None if mode == "wb" else encoding or "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode_of(path))  # mkstemp's 0600 would lock out the people a run folder is shared with
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented JSON, atomically; NaN and infinities are refused because JSON has none."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UserError: If the file is missing, unreadable or not JSON; the message names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows put a byte order mark first
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from None


def folder_fingerprint(folder: str | os.PathLike[str], endings: tuple[str, ...]) -> str:
    """SHA-256 of the names and contents of a folder's files, in hexadecimal: whether they are still the same.

    Args:
        folder: The folder; sub-folders are left out.
        endings: Of the names of the files that count.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.name.endswith(endings):
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _mode_of(path: Path) -> int:
    """Permission bits the finished file shall have: those of the file it replaces, else what the umask leaves."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mode & 0o777
    return new_file_mode()


def new_file_mode() -> int:
    """Permission bits of a new file: what the umask leaves."""
    umask = os.umask(0)  # the only portable way to read it is to set it
    os.umask(umask)
    return 0o666 & ~umask

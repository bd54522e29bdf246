"""Files: atomic writing through a temporary name and a rename, JSON, locks, and compressed text."""

import codecs
import contextlib
import hashlib
import io
import json
import lzma
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a file ("wb" or "w") that appears under its name only when the block ends without an error.

    The temporary file is in the same folder, because a rename is atomic only within one file system. It is synced
    before the rename; otherwise a power failure could leave an empty file under the new name. The folder is created,
    and an existing file is replaced. Text is in UTF-8 unless `encoding` is given.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_write: mode {mode!r} is not one of 'wb', 'w'")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _errors_name(path.parent, path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, mode, encoding=None if mode == "wb" else encoding or "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # that of the replaced file; mkstemp's mode 0600 would exclude other users of a shared run folder
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else new_file_mode())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(target: str | os.PathLike[str], known_names: set[str], what: str) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to the target when the block ends without an error.

    An existing folder is replaced; a file, or a folder with entries other than `known_names`, raises UserError, which
    names its kind as `what`, such as "an export". The files are synced first and get the permissions of the umask.
    Temporary folders of killed processes are removed.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 (resolve would follow a link and replace what it points to)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a folder for {what}")
    foreign = sorted({path.name for path in target.iterdir()} - known_names) if target.exists() else []
    foreign = [name for name in foreign if not name.startswith(f".{target.name}.")]
    if foreign:
        raise UserError(f"{target} contains {foreign[0]}, which is not part of {what}; give a new or empty folder")
    with _workplace(target) as workplace, _errors_name(workplace, target):
        new = workplace / "new"
        new.mkdir()  # not the mkdtemp folder itself, which other users cannot read
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                path.chmod(new_file_mode())
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if workplace.parent == target:  # a mount point, or in a read-only folder
            for path in new.iterdir():
                remove(target / path.name)
                path.rename(target / path.name)
            return
        if target.exists():
            target.rename(workplace / "old")  # two renames: no portable call replaces a non-empty folder atomically
        try:
            new.rename(target)
        except OSError:
            if (workplace / "old").exists():
                (workplace / "old").rename(target)
            raise


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to the target, or in it if the target cannot be renamed; removed afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    is_fixed = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    parent = target if is_fixed else target.parent
    prefix = f".{target.name}."
    for path in parent.iterdir():
        if path.name.startswith(prefix) and path.name.endswith(".partial") and (held := try_hold_folder(path)):
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)
    with _errors_name(parent, target):
        workplace = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=".partial"))
    held = try_hold_folder(workplace)
    try:
        yield workplace
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
        if held:
            os.close(held)


@contextlib.contextmanager
def _errors_name(temporary: Path, path: Path) -> Iterator[None]:
    """Replace `temporary` by `path` in an OSError."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def remove(path: Path) -> None:
    """Remove a file or folder recursively, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def expand_home(value: Any) -> Any:
    """Replace a leading ~ by the home folder, if the user has one, in every string of nested lists and mappings."""
    if isinstance(value, str) and value.startswith("~"):
        expanded = os.path.expanduser(value)  # noqa: PTH111 (Path.expanduser raises for names that are not users')
        if expanded.startswith("~/") or expanded == "~":
            raise UserError(f"{value!r} begins with ~, but HOME is not set and this user has no home folder")
        return expanded
    if isinstance(value, dict):
        return {name: expand_home(item) for name, item in value.items()}
    return [expand_home(item) for item in value] if isinstance(value, list) else value


def user_cache() -> Path:
    """Return $XDG_CACHE_HOME, ~/.cache, or (without a home) a per-user temporary folder; does not create it."""
    configured = os.environ.get("XDG_CACHE_HOME")
    if configured:
        return Path(configured)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # HOME is unset and the user has no database entry
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"


def cache_folder() -> Path:
    """Return the folder of downloads and compiled code: nanochat_lit in the user's cache; not created here."""
    return user_cache() / "nanochat_lit"


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented JSON, atomically; raises an error for NaN and infinities."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; raises UserError, which names it, if it is missing, unreadable or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors may add a byte order mark
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None


def folder_fingerprint(folder: str | os.PathLike[str], endings: tuple[str, ...]) -> str:
    """Return the SHA-256 in hexadecimal of the names and contents of a folder's files (by suffix), or of a file."""
    digest, root = hashlib.sha256(), Path(folder)
    for path in sorted(root.iterdir()) if root.is_dir() else [root]:
        if path == root or (path.is_file() and path.name.endswith(endings)):
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def new_file_mode() -> int:
    """Return the permission bits of a new file under the umask."""
    umask = os.umask(0)  # setting it is the only portable way to read it
    os.umask(umask)
    return 0o666 & ~umask


LOCK_FILE = ".lock"

_held: set[Path] = set()


@contextlib.contextmanager
def run_lock(folder: Path, command: str) -> Iterator[None]:
    """Lock a run folder until the block ends; the system releases the lock when the process dies.

    The lock is reentrant within a process. The folder is created if needed, and removed if it is empty afterwards. If
    another process holds it, the UserError has its pid and the `command` that it gave.
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
    """Lock a file that is open for writing until it is closed or this process ends; return whether this succeeded.

    With `wait`, wait until no other process holds the lock.
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
    """Lock a folder until the returned handle is closed or this process ends; None if that is not possible."""
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
    """Lock a file that is open for writing, for this process only; forked processes do not inherit the lock.

    Closing any handle of the same file in this process releases the lock. Returns whether the lock was acquired, or the
    file system has no locks.
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


CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Codec by suffix of compressed files."""

_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip


def is_compressed(path: Path) -> bool:
    """Return whether the suffix is that of a compressed file, ignoring case."""
    return path.suffix.lower() in CODECS


def open_unpacked(path: Path) -> tuple[IO[bytes], int]:
    """Open a text file after its UTF-8 byte order mark, decompressing on the fly; return it and the mark's length.

    Raises UserError for UTF-16 and UTF-32; reading a damaged file raises one of `UNPACK_ERRORS`.
    """
    codec = CODECS.get(path.suffix.lower())
    file: IO[bytes]
    if codec is None:
        file = path.open("rb")
    elif codec == "xz":
        file = lzma.open(path)  # noqa: SIM115 - the caller closes it
    else:
        import pyarrow

        file = io.BufferedReader(pyarrow.input_stream(str(path), compression=codec))
    try:
        start = file.peek(4)[:4]
        for mark, name in _MARKS.items():
            if start.startswith(mark):
                raise UserError(f"'{path}' is {name} text; convert it to UTF-8")
        return file, len(file.read(len(codecs.BOM_UTF8))) if start.startswith(codecs.BOM_UTF8) else 0
    except BaseException:
        file.close()
        raise


UNPACK_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Errors raised on reading damaged compressed files."""

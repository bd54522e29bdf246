"""Atomic writing of files and folders, through a temporary name and a rename."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.file_lock import try_hold_folder


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when the block ends without an error.

    The temporary file is in the same folder, because a rename is atomic only within one file system. It is synced
    before the rename; otherwise a power failure could leave an empty file under the new name.

    Args:
        path: Path of the file; its folder is created, and an existing file is replaced.
        mode: "wb" or "w".
        encoding: Encoding of text; None is UTF-8.

    Yields:
        The open file.
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
        temporary.chmod(_mode_of(path))  # mkstemp's mode 0600 would exclude other users of a shared run folder
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(target: str | os.PathLike[str], known_names: set[str], what: str) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to the target when the block ends without an error.

    The files are synced first and get the permissions of the umask. Temporary folders of killed processes are removed.

    Args:
        target: Folder to create or replace.
        known_names: Entries that an existing folder may have; a folder with other entries is not replaced.
        what: Kind of folder for the message, such as "an export".

    Yields:
        The temporary folder.

    Raises:
        UserError: If the target is a file, or a folder with other entries.
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
    """Replace a leading ~ by the home folder in every string of a value.

    Args:
        value: A string, or nested lists and mappings of strings; other values are returned unchanged.

    Raises:
        UserError: If the user has no home folder.
    """
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
    """Read a JSON file.

    Returns:
        Its content.

    Raises:
        UserError: If the file is missing, unreadable or not JSON; names the file.
    """
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
    """Return the SHA-256 of the names and contents of a folder's files in hexadecimal.

    Args:
        folder: The folder, without its subfolders; or a file.
        endings: Suffixes of the folder's files to include.
    """
    digest, root = hashlib.sha256(), Path(folder)
    for path in sorted(root.iterdir()) if root.is_dir() else [root]:
        if path == root or (path.is_file() and path.name.endswith(endings)):
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _mode_of(path: Path) -> int:
    """Return the permission bits of the replaced file, else the default of the umask."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mode & 0o777
    return new_file_mode()


def new_file_mode() -> int:
    """Return the permission bits of a new file under the umask."""
    umask = os.umask(0)  # setting it is the only portable way to read it
    os.umask(umask)
    return 0o666 & ~umask

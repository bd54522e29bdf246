"""Files and folders that are either whole or absent: written under a temporary name, then renamed."""

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
    with _errors_name(path.parent, path):
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


@contextlib.contextmanager
def whole_folder(target: str | os.PathLike[str], known_names: set[str], what: str) -> Iterator[Path]:
    """Fill a temporary folder that takes the target's name when the block ends without an error.

    The files are synced to disk first and get the permissions of the umask. Temporary folders of processes that were
    killed are removed.

    Args:
        target: The folder to make or replace.
        known_names: Entries that an older folder of this kind may have; with any other entry it is not replaced.
        what: Kind of folder, for the message: "an export".

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
        raise UserError(f"{target} holds {foreign[0]}, which is not part of {what}; give a new or empty folder")
    with _workplace(target) as workplace, _errors_name(workplace, target):
        new = workplace / "new"
        new.mkdir()  # not the workplace itself: mkdtemp's folder is closed to other users
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                path.chmod(new_file_mode())
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if workplace.parent == target:  # a mount point, or in a folder that may not be written
            for path in new.iterdir():
                remove(target / path.name)
                path.rename(target / path.name)
            return
        if target.exists():
            target.rename(workplace / "old")  # two renames: nothing replaces a filled folder in one step everywhere
        try:
            new.rename(target)
        except OSError:
            if (workplace / "old").exists():
                (workplace / "old").rename(target)
            raise


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, or in it where the target cannot be renamed; removed in the end."""
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
    """Let an OSError about something in `temporary` name `path`, which is what was asked for."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def expand_home(value: Any) -> Any:
    """Replace ~ at the beginning of every text in a value of an option or a recipe by the home folder.

    Args:
        value: A text, or lists and mappings of them; anything else is returned as it is.

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
    """$XDG_CACHE_HOME, or ~/.cache, or a folder of this user in the temporary folder without a home; not created here."""
    configured = os.environ.get("XDG_CACHE_HOME")
    if configured:
        return Path(configured)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an entry in the user database
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"


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
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None


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

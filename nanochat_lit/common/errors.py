"""The error class for users, and conversion of other errors to it."""

import errno
import importlib.metadata
import os
import re


class UserError(ValueError):
    """An error that the user can fix; the command line prints its message without a traceback.

    The message is one or two lines and names the value, the limit and the fix.
    """


def check_at_least_one(**values: int | None) -> None:
    """Raise UserError for the first value, by name, that is less than 1; None is valid."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")


def check_positive(**values: float | None) -> None:
    """Raise UserError for the first value, by name, that is not positive; None is valid."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}; it must be positive")


_ADVICE = {
    errno.EACCES: "this user may not read or write it; change its permissions, or give another path",
    errno.EPERM: "this user may not do that; give another path",
    errno.EROFS: "the file system is read-only; give another path",
    errno.ENOSPC: "the disk is full; free disk space, or give a path on another disk",
    errno.EDQUOT: "the disk quota is used up; free disk space, or give a path on another disk",
    errno.EFBIG: "the file would exceed the size limit; see ulimit -f",
    errno.EIO: "the device failed to read or write",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder; give a file",
    errno.EEXIST: "it already exists; give another path",
    errno.ENOENT: "no such file or folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its symbolic links form a cycle",
    errno.EMFILE: "too many files are open; see ulimit -n",
    errno.ENOLCK: "the file system does not support locks",
}
"""Advice for system errors, by error number."""


def os_error_text(error: OSError) -> str | None:
    """Return one line on a system error, the path and what to do; None if it is not about a path, a disk or a limit."""
    if error.filename is None and error.errno not in _ADVICE:
        return None
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return advice if error.filename is None else f"{os.fsdecode(error.filename)!r}: {advice}"


def missing_package(purpose: str, package: str | None, extra: str) -> UserError:
    """Return the error of a feature that needs an optional package, with the command that installs it.

    `purpose` names the feature, as the beginning of a sentence; `extra` of this project installs the package.
    """
    return UserError(f"{purpose} needs {package}; pip install '.[{extra}]' in the checkout, or 'nanochat-lit[{extra}]'")


def require_version(purpose: str, package: str, oldest: str, extra: str) -> None:
    """Raise an error if an installed optional package is older than the feature (`purpose`) needs, as MAJOR.MINOR.

    `extra` of this project installs a supported version.
    """
    found = importlib.metadata.version(package)
    if [int(part) for part in re.findall(r"\d+", found)[:2]] < [int(part) for part in oldest.split(".")]:
        raise UserError(
            f"{purpose} needs {package} {oldest} or newer, {found} is installed; "
            f"pip install '.[{extra}]' in the checkout, or 'nanochat-lit[{extra}]'"
        )

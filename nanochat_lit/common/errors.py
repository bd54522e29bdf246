"""The one error that is meant for the person at the keyboard, and other errors in its form."""

import errno
import os


class UserError(ValueError):
    """A mistake that the user can fix; the command line shows its message without a traceback.

    The message is one or two lines and names the value, the limit and the fix.
    """


_ADVICE = {
    errno.EACCES: "this user may not read or write it; change its permissions, or give another path",
    errno.EPERM: "this user may not do that; give another path",
    errno.EROFS: "the file system is read-only; give another path",
    errno.ENOSPC: "the disk is full; make room, or give a path on another disk",
    errno.EDQUOT: "the disk quota is used up; make room, or give a path on another disk",
    errno.EFBIG: "the file would be larger than is allowed here; see ulimit -f",
    errno.EIO: "the device has failed to read or write",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder; give a file",
    errno.EEXIST: "it exists already; give another path",
    errno.ENOENT: "no such file or folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EMFILE: "too many files are open; see ulimit -n",
    errno.ENOLCK: "the file system has no locks",
}
"""What to do about errors of the system, by number."""


def os_error_text(error: OSError) -> str | None:
    """One line about an error of the system: the path, and what to do.

    Args:
        error: Raised while a file was read or written.

    Returns:
        None for an error that is not about a path, a disk or a limit.
    """
    if error.filename is None and error.errno not in _ADVICE:
        return None
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return advice if error.filename is None else f"{os.fsdecode(error.filename)!r}: {advice}"


def missing_package(purpose: str, package: str | None, extra: str) -> UserError:
    """The error of something that needs an optional package, with the command that installs it.

    Args:
        purpose: What was asked for, as the beginning of a sentence.
        package: Name of what could not be imported.
        extra: The extra of this project that brings it.
    """
    return UserError(f"{purpose} needs {package}; pip install '.[{extra}]' in the checkout, or 'nanochat-lit[{extra}]'")

"""File access of sandboxed programs, as a Landlock ruleset.

Landlock (Linux 5.13) lets any process irrevocably drop file access, without privileges. The ruleset handles all access
rights of the kernel. Its rules allow reading the standard library and the system's shared libraries, and reading and
writing plain files in one folder. Folders, links, pipes and devices cannot be created, so the folder has no subfolders.
Newer kernels also block TCP (version 4), and signals and abstract sockets to outside processes (version 6), in addition
to `sandbox_seccomp`.

Reference: https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import struct
import sys
import sysconfig
from pathlib import Path

from nanochat_lit.engine.sandbox_worker import CREATE_RULESET, READ_DIR, READ_FILE

_WRITE_FILE = 1 << 1
_REMOVE_FILE = 1 << 5
_MAKE_REG = 1 << 8
_TRUNCATE = 1 << 14

_VERSION_FLAG = 1


def landlock_version() -> int:
    """Return the kernel's Landlock ABI version; 0 if not available."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))


def ruleset_attributes(version: int) -> bytes:
    """Return `struct landlock_ruleset_attr`, the access rights that need a rule.

    Args:
        version: Result of `landlock_version`.

    Returns:
        The struct in the size of that version; empty for version 0.
    """
    if version < 1:
        return b""
    num_rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    network, scope = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    return struct.pack("=QQQ", (1 << num_rights) - 1, network, scope)[:size]


def folder_rights(version: int) -> int:
    """Return the rights in the program's folder: read, write, create and remove plain files."""
    return READ_FILE | READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | (_TRUNCATE if version >= 3 else 0)


def library_rules() -> list[tuple[str, int]]:
    """Return paths and rights of the system's shared libraries, which standard modules load."""
    rules = [("/etc/ld.so.cache", READ_FILE), ("/dev/null", READ_FILE | _WRITE_FILE)]
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"):
        narrow = Path(folder, multiarch)  # the folder itself if this subfolder does not exist
        rules.append((str(narrow if narrow.is_dir() else folder), READ_FILE))
    return [(path, rights) for path, rights in rules if Path(path).exists()]

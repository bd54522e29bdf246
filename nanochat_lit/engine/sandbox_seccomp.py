"""The system calls that model-written Python may make, as a seccomp filter for x86_64 and aarch64.

The list names what may be done: a Python program that computes, reads its modules and writes in its folder needs some seventy
calls. Every other call, also one that a later kernel brings, answers EPERM: sockets, processes, threads, signals, changes of
owner, mode or time of a file, namespaces, shared memory. Six calls are admitted for some arguments only. A call that claims
to come from another architecture (32-bit code on x86_64) ends the process.

The filter is classic BPF. It sees numbers, not paths: which files may be opened is Landlock's part (`sandbox_landlock`).
Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
"""

import errno
import struct

AUDIT_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""`platform.machine()` -> the name of the architecture in seccomp's data."""

# name: (x86_64, aarch64); None where the architecture has only the newer call of the same purpose.
SYSCALLS: dict[str, tuple[int, int | None]] = {
    # memory
    "brk": (12, 214),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    # what is open
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "fdatasync": (75, 83),
    "fstat": (5, 80),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "getdents64": (217, 61),
    "lseek": (8, 62),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "pselect6": (270, 72),
    "pwrite64": (18, 68),
    "read": (0, 63),
    "readv": (19, 65),
    "select": (23, None),
    "write": (1, 64),
    "writev": (20, 66),
    # paths
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "getcwd": (79, 17),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "rename": (82, None),
    "renameat": (264, 38),
    "stat": (4, None),
    "statx": (332, 291),
    "umask": (95, 166),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    # time
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "restart_syscall": (219, 128),
    "time": (201, None),
    "times": (100, 153),
    # the process itself
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "sigaltstack": (131, 132),
    "sysinfo": (99, 179),
    "uname": (63, 160),
}
"""Calls that are always admitted."""

CHECKED_SYSCALLS: dict[str, tuple[int, int | None]] = {
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "open": (2, None),
    "openat": (257, 56),
    "prlimit64": (302, 261),
    "renameat2": (316, 276),
}
"""Calls that are admitted for some arguments only."""

# fcntl: duplicate, get and set close-on-exec, get flags. F_SETOWN and F_SETSIG would send signals to other processes.
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
# ioctl: TCGETS (Python asks it whether a file is a terminal), FIOCLEX.
IOCTL_COMMANDS = (0x5401, 0x5451)
# renameat2: none, RENAME_NOREPLACE, RENAME_EXCHANGE. RENAME_WHITEOUT would leave a device node in place of the file.
RENAME_FLAGS = (0, 1, 2)
O_PATH = 0x200000
O_TRUNC = 0x200
O_ACCMODE = 0x3

_LOAD, _JUMP_EQUAL, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
_ALLOW, _KILL_PROCESS, _DENY = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16

_Instruction = tuple[int, int, int, int]
"""Code, steps to skip if true, steps to skip if false, operand."""


def seccomp_filter(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`, little-endian.

    Args:
        machine: `platform.machine()`.

    Returns:
        8 bytes an instruction; empty if the machine's system calls are not known.
    """
    if machine not in AUDIT_ARCHES:
        return b""
    column = list(AUDIT_ARCHES).index(machine)
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCHES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]
    for numbers in SYSCALLS.values():
        if (number := numbers[column]) is not None:
            program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for name, numbers in CHECKED_SYSCALLS.items():
        if (number := numbers[column]) is not None:
            check = _argument_check(name)
            program += [(_JUMP_EQUAL, 0, len(check), number), *check]
    program.append((_RETURN, 0, 0, _DENY))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _argument_check(name: str) -> list[_Instruction]:
    """Rules for the call `name`; every path returns a verdict."""
    if name == "fcntl":
        return _one_of(1, FCNTL_COMMANDS)
    if name == "ioctl":
        return _one_of(1, IOCTL_COMMANDS)
    if name == "renameat2":
        return _one_of(4, RENAME_FLAGS)
    if name in ("open", "openat"):
        # An O_PATH handle is outside Landlock's sight, and so is, before its third version, truncating what is opened to
        # be read.
        return [
            _load_argument(1 if name == "open" else 2),
            (_JUMP_SET, 3, 0, O_PATH),
            (_AND, 0, 0, O_ACCMODE | O_TRUNC),
            (_JUMP_EQUAL, 1, 0, O_TRUNC),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _DENY),
        ]
    # prlimit64: asking for one's own limits, nothing else: process 0, no new limit (both halves of the pointer).
    return [
        _load_argument(0),
        (_JUMP_EQUAL, 0, 5, 0),
        _load_argument(2),
        (_JUMP_EQUAL, 0, 3, 0),
        _load_argument(2, upper=True),
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]


def _one_of(argument: int, values: tuple[int, ...]) -> list[_Instruction]:
    check = [_load_argument(argument)]
    for value in values:
        check += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*check, (_RETURN, 0, 0, _DENY)]


def _load_argument(index: int, *, upper: bool = False) -> _Instruction:
    """Load 32 of the 64 bits of an argument."""
    return (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * index + 4 * upper)

"""The program that runs inside the sandbox: give up every right, then run `program.py` of the working folder.

`sandbox.run_python` starts it as `python -I -S sandbox_worker.py`, a fresh process for each program, and writes to its
standard input the policy (marshalled) and a token. The token stays in the pipe until the program has ended; the report, the
last thing on the standard error, begins with it. So what a program prints is not taken for a report.

Nothing of this library and little of the standard one is imported: each import is paid for at every start.
"""

import ctypes
import marshal
import os
import struct
import sys

TOKEN_BYTES = 32
MAX_MESSAGE_CHARS = 1000

# Landlock's rights and system calls; the numbers are the same on every architecture.
READ_FILE = 1 << 2
READ_DIR = 1 << 3
CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1

_SET_PARENT_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 22, 38
_SECCOMP_FILTER = 2
_SIGKILL = 9
_CAPABILITY_VERSION = 0x20080522

# Freed when the program has ended, so that one that filled the memory still gets its report.
_BALLAST_BYTES = 4 << 20


def main() -> None:
    """Read the policy, isolate this process or refuse, run the program, report how it ended."""
    read, write, end = os.read, os.write, os._exit  # the program may replace them in their module
    # Copies, because the program may close 0 and 2.
    control, reports = os.dup(0), os.dup(2)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free, 0
    policy = marshal.loads(_read(control, int.from_bytes(_read(control, 4), "little")))  # noqa: S302 - from our parent
    with open("program.py", "rb") as file:  # noqa: PTH123 - pathlib would double the time this takes to start
        source = file.read()
    missing = _isolate(policy)
    if missing and not policy["allow_unsafe"]:
        outcome, message = "refused", missing
    else:
        os.environ.clear()
        os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd())  # noqa: PTH109 - as above
        outcome, message = _run(source)
    report = f"{outcome}\n{message[:MAX_MESSAGE_CHARS]}".encode("utf-8", "backslashreplace")
    write(reports, read(control, TOKEN_BYTES) + report)  # the pipe has the whole token
    end(0)


def _read(descriptor: int, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = os.read(descriptor, num_bytes - len(data))
        if not part:
            os._exit(1)
        data += part
    return data


def _run(source: bytes) -> tuple[str, str]:
    """Return the outcome of the program ("ok", "exit", "memory" or "exception") and its message."""
    module = type(sys)("__main__")
    module.__dict__["__file__"] = "program.py"
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    print_traceback, streams = sys.__excepthook__, (sys.stdout, sys.stderr)
    outcome, message = "ok", ""
    ballast = bytearray(_BALLAST_BYTES)
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - what this is for
    except SystemExit as error:
        outcome, message = "exit", f"the program called exit({error.code!r:.100})"
    except MemoryError:
        outcome, message = "memory", "the program needs more memory than it may have"
    except BaseException as error:  # noqa: BLE001 - whatever the program raises is its result
        outcome, message = "exception", type(error).__name__
        ballast = None
        own = error.__traceback__
        print_traceback(type(error), error.with_traceback(own and own.tb_next), own and own.tb_next)
        message = f"{message}: {error}"
    del ballast
    try:
        for stream in streams:
            stream.flush()
    except (OSError, ValueError):  # closed by the program
        pass
    return outcome, message


def _isolate(policy: dict) -> str:
    """Give up every right this process can give up; what it could not, in words."""
    missing = _limit(policy["limits"])
    if not sys.platform.startswith("linux"):
        return f"Landlock and seccomp need Linux, this is {sys.platform}"
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _SET_PARENT_DEATH_SIGNAL, _SIGKILL)
    if _prctl(libc, _SET_NO_NEW_PRIVILEGES, 1) or not _drop_capabilities(libc):
        missing.append("privileges cannot be given up")
    if not policy["ruleset"]:
        missing.append("Landlock is missing (Linux 5.13, switched on at boot)")
    elif not _restrict_files(libc, policy["ruleset"], policy["rules"] + _module_rules()):
        missing.append("Landlock is refused by the kernel")
    if not policy["filter"]:
        missing.append("seccomp has no table of system calls for this processor")
    elif not _restrict_calls(libc, policy["filter"]):
        missing.append("seccomp is refused by the kernel")
    return ", ".join(missing)


def _limit(limits: list[tuple[str, int, int]]) -> list[str]:
    """Set resource limits, soft and hard; which of them this system does not have."""
    try:
        import resource
    except ImportError:
        return ["there are no resource limits"]
    missing = []
    for name, soft, hard in limits:
        number = getattr(resource, name, None)
        if number is None:
            missing.append(f"{name} is unknown")
            continue
        ceiling = resource.getrlimit(number)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        try:
            resource.setrlimit(number, (soft, hard))
        except (ValueError, OSError) as error:
            missing.append(f"{name} cannot be set: {error}")
    return missing


def _syscall(libc: ctypes.CDLL, *arguments: int | bytes) -> int:
    return libc.syscall(*(ctypes.c_long(x) if isinstance(x, int) else x for x in arguments))


def _prctl(libc: ctypes.CDLL, option: int, *arguments: int) -> int:
    return libc.prctl(option, *map(ctypes.c_ulong, (*arguments, 0, 0, 0, 0)[:4]))


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    """Make root an ordinary user: one without a capability, who may do no more than anybody with that number."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    return libc.capset(header, bytes(24)) == 0


def _module_rules() -> list[tuple[str, int]]:
    """Landlock rules to read the standard library, without the packages that are installed inside it."""
    rules = []
    for root in sys.path:
        if os.path.isdir(root):  # noqa: PTH112 - as above
            rules.append((root, READ_DIR))
            with os.scandir(root) as entries:
                rules += [(entry.path, READ_FILE | READ_DIR if entry.is_dir() else READ_FILE)
                          for entry in entries if entry.name not in ("site-packages", "dist-packages")]  # fmt: skip
        elif os.path.exists(root):  # noqa: PTH110 - the zipped library
            rules.append((root, READ_FILE))
    return rules


def _restrict_files(libc: ctypes.CDLL, ruleset: bytes, rules: list[tuple[str, int]]) -> bool:
    handle = _syscall(libc, CREATE_RULESET, ruleset, len(ruleset), 0)
    if handle < 0:
        return False
    for path, rights in rules:
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # what cannot be reached needs no rule
            continue
        rule = struct.pack("=Qi", rights, beneath)
        _syscall(libc, _ADD_RULE, handle, _RULE_PATH_BENEATH, rule, 0)
        os.close(beneath)
    restricted = _syscall(libc, _RESTRICT_SELF, handle, 0) == 0
    os.close(handle)
    return restricted


def _restrict_calls(libc: ctypes.CDLL, code: bytes) -> bool:
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(buffer)))
    return _prctl(libc, _SET_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(program)) == 0


if __name__ == "__main__":
    main()

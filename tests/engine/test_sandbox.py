"""How programs end in the sandbox, and when nothing runs at all. The ways out are tried in test_sandbox_escapes.py."""

import concurrent.futures
import contextlib
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import nanochat_lit
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import sandbox, sandbox_landlock, sandbox_worker
from nanochat_lit.engine.sandbox import SandboxLimits, SandboxResult, missing_isolation, run_python
from nanochat_lit.engine.sandbox_seccomp import AUDIT_ARCHES, CHECKED_SYSCALLS, SYSCALLS, seccomp_filter


@pytest.fixture(scope="module")
def run():
    if (missing := missing_isolation()) is not None:
        pytest.skip(missing)

    def run_patiently(program: str, **limits: float) -> SandboxResult:
        return run_python(program, SandboxLimits(**{"timeout_s": 60, **limits}))

    return run_patiently


def test_a_program_that_works(run):
    program = """
import collections, dataclasses, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random, re, string, sys
import pickle, tempfile, typing

@dataclasses.dataclass
class Point:
    x: int

assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
assert __name__ == "__main__" and sys.argv == ["program.py"] and sys.stdin.read() == ""
with open("mine.txt", "w") as file:
    file.write("kept")
with tempfile.TemporaryFile() as file:
    file.write(b"x")
print(open("mine.txt").read(), hashlib.md5(b"").hexdigest(), math.isqrt(49), "é")
print("aside", file=sys.stderr)
"""
    result = run(program)
    assert result.ok, result.stderr
    assert (result.error, result.message) == (None, "")
    assert result.stdout == "kept d41d8cd98f00b204e9800998ecf8427e 7 é\n"
    assert result.stderr == "aside\n"
    assert 0 < result.duration_s < 60


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("print('before'); [][3]", "exception", "IndexError: list index out of range"),
        ("print('before')\nassert 1 == 2", "exception", "AssertionError: "),
        ("raise KeyboardInterrupt", "exception", "KeyboardInterrupt: "),
        ("print('before'\n", "exception", "SyntaxError: '(' was never closed (program.py, line 1)"),
        ("\ud800", "exception", "SyntaxError: "),
        ("\0", "exception", ""),
        ("import numpy", "exception", "ModuleNotFoundError: No module named 'numpy'"),
        ("input()", "exception", "EOFError: EOF when reading a line"),
        ("import sys; sys.exit()", "exit", "the program called exit(None)"),
        ("import os; os._exit(7)", "exit", "the process ended with status 7 before the program's end"),
        ("import ctypes; ctypes.string_at(0)", "crash", "killed by SIGSEGV"),
        ("x = [b'x' * 10**6 for _ in range(10**4)]", "memory", "the program needs more memory than it may have"),
        ("while True: print('x' * 1000)", "output", "wrote more than 65536 bytes"),
    ],
)
def test_programs_that_fail(run, program, error, message):
    result = run(program)
    assert not result.ok
    assert result.error == error
    assert result.message.startswith(message)
    assert len(result.stdout) <= 65536


def test_time_on_the_clock_ends(run):
    result = run("print('slept', flush=True)\nimport time; time.sleep(60)", timeout_s=1)
    assert (result.error, result.message, result.stdout) == ("timeout", "ran longer than 1 s", "slept\n")
    assert 1 <= result.duration_s < 5


@pytest.mark.slow
def test_a_program_that_ignores_the_warning_is_killed_a_second_later(run):
    program = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(program, cpu_s=1).message == "killed by SIGKILL"


def test_processor_time_ends(run):
    result = run("while True: pass", cpu_s=1)
    assert (result.error, result.message) == ("timeout", "exceeded its CPU time limit")


def test_a_program_that_closes_everything_is_stopped(run):
    assert run("import os; os.closerange(0, 64)\nwhile True: pass", timeout_s=1).error == "timeout"


def test_files_are_limited_in_number_and_size(run):
    assert run("i = 0\nwhile True: open(str(i), 'w'); i += 1", folder_bytes=1 << 20).error == "files"
    assert "File too large" in run("open('x', 'wb').write(bytes(9999))", folder_bytes=1 << 16).message
    assert run("open('x', 'wb').write(bytes(4096))", folder_bytes=1 << 16).ok


HOLD = """
import os, ctypes, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for number in range(40):
    handle = os.open("x", os.O_CREAT | os.O_RDWR)
    os.write(handle, bytes(1 << 16))
    {hold}
    os.unlink("x")
time.sleep(30)
"""


@pytest.mark.parametrize("hold", ["libc.mmap(None, 4096, 1, 1, handle, 0); os.close(handle)", "pass"])
def test_removed_files_that_are_held_count(run, hold):
    result = run(HOLD.format(hold=hold), folder_bytes=1 << 20)
    assert (result.error, result.message) == ("files", "its files are larger than 1048576 bytes")


def test_temporary_files_that_are_let_go_do_not_count(run):
    program = """
import tempfile
for _ in range(40):
    with tempfile.TemporaryFile() as file:
        file.write(bytes(1 << 16))
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
"""
    assert run(program, folder_bytes=1 << 20).ok


def test_a_result_cannot_be_taken_for_a_truth(run):
    with pytest.raises(TypeError, match=r"use \.ok"):
        bool(run("raise SystemExit(1)"))


@pytest.mark.parametrize("trick", [
    "os.write = lambda handle, data: write(handle, data[:32] + b'ok\\n')",
    "os._exit = lambda status: None; os.write = lambda *_: 0",
    "os.read = lambda *_: b''",
    "builtins.BaseException = builtins.Exception = ZeroDivisionError",
    "builtins.type = builtins.len = lambda _: None",
    "sys.excepthook = sys.__excepthook__ = lambda *_: os._exit(0)",
    "import atexit; atexit.register(os._exit, 0)",
    "sys.stderr = sys.stdout = None",
    "os._exit(0)",
])  # fmt: skip
def test_what_a_program_replaces_does_not_make_it_right(run, trick):
    assert not run(f"import builtins, os, sys\nwrite = os.write\n{trick}\nassert 1 == 2").ok


def test_traceback_shows_the_program_and_not_the_worker(run):
    result = run("def f():\n    return 1 / 0\n\nf()\n")
    assert "    return 1 / 0\n" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "sandbox_worker" not in result.stderr


def test_environment_and_handles_are_not_inherited(run, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nonexistent")
    program = """
import os
assert set(os.environ) == {"HOME", "TMPDIR"} and os.environ["HOME"] == os.getcwd(), os.environ
def is_open(handle):
    try: return bool(os.fstat(handle))
    except OSError: return False
assert sum(map(is_open, range(64))) <= 5  # three streams, and the worker's copies of two
"""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    result = run(program)
    os.close(reading)
    os.close(writing)
    assert result.ok, result.message


def test_many_threads_at_once_and_nothing_stays_behind(run, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def one(i: int) -> str:
        return run(f"open('mine', 'w').write('{i}'); print(open('mine').read() * 9000)", output_bytes=1 << 20).stdout

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(12))) == [str(i) * 9000 + "\n" for i in range(12)]
    assert list(tmp_path.iterdir()) == []


def _workers(parent: int) -> list[Path]:
    """Folders in /proc of the children that have a filter of system calls."""
    found = []
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread or child that has just ended
            folders = [Path("/proc", number) for number in children.read_text().split()]
            found += [folder for folder in folders if "Seccomp:\t2" in (folder / "status").read_text()]
    return found


def _wait_for(condition, timeout_s: float = 30):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_the_worker_has_no_capabilities(run):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, "import time; time.sleep(1)")
        status = (_wait_for(lambda: _workers(os.getpid()))[0] / "status").read_text()
        assert future.result().ok
    assert re.findall(r"Cap(?:Prm|Eff|Amb):\t(\S+)", status) == ["0" * 16] * 3
    assert "NoNewPrivs:\t1" in status


# Another process that imports the sandbox without its package, which would import torch.
ALONE = f"""
import sys, types
sys.path.insert(0, {str(Path(nanochat_lit.__file__).parents[1])!r})
sys.modules["nanochat_lit.engine"] = types.ModuleType("nanochat_lit.engine")
sys.modules["nanochat_lit.engine"].__path__ = [sys.path[0] + "/nanochat_lit/engine"]
from nanochat_lit.engine.sandbox import SandboxLimits, missing_isolation, run_python
"""


def test_the_program_dies_with_its_caller(run, tmp_path):
    code = ALONE + "run_python('import time; time.sleep(60)', SandboxLimits(timeout_s=60))"
    caller = subprocess.Popen([sys.executable, "-c", code], env={"TMPDIR": str(tmp_path)})
    (worker,) = _wait_for(lambda: _workers(caller.pid))
    caller.kill()
    caller.wait()

    def is_dead() -> bool:
        try:
            return (worker / "stat").read_text().split()[2] == "Z"  # a container may have nobody who reaps it
        except (FileNotFoundError, ProcessLookupError):
            return True

    _wait_for(is_dead, timeout_s=10)


LACKING = """
import ctypes, struct
libc = ctypes.CDLL(None)
code = bytes.fromhex(sys.argv[1])
buffer = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(buffer)))
assert libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
assert libc.prctl(22, *map(ctypes.c_ulong, (2, ctypes.addressof(program), 0, 0))) == 0
refused = run_python("print('ran')")
assert (refused.error, refused.stdout) == ("refused", ""), refused
assert missing_isolation() == refused.message
assert run_python("print('ran')", allow_unsafe=True).stdout == "ran\\n"
print(refused.message)
"""


@pytest.mark.parametrize(
    ("numbers", "argument", "message"),
    [
        ((444, 444), None, "Landlock is missing"),
        ((446, 446), None, "Landlock is refused"),
        ((157, 167), 22, "seccomp is refused"),
        ((157, 167), 38, "privileges cannot be given up"),
        ((126, 91), None, "privileges cannot be given up"),
    ],
)
def test_on_a_kernel_that_lacks_something_nothing_runs_unless_allowed(run, numbers, argument, message):
    """The kernel is a process whose own filter makes one call fail (prctl only for one first argument)."""
    number = dict(zip(AUDIT_ARCHES, numbers, strict=True))[os.uname().machine]
    same_argument = [] if argument is None else [(0x20, 0, 0, 16), (0x15, 0, 1, argument)]
    steps = [(0x20, 0, 0, 0), (0x15, 0, len(same_argument) + 1, number), *same_argument, (6, 0, 0, 0x50026)]
    code = b"".join(struct.pack("<HBBI", *step) for step in [*steps, (6, 0, 0, 0x7FFF0000)])
    done = subprocess.run(
        [sys.executable, "-c", ALONE + LACKING, code.hex()], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"not run, because isolation is not available: {message}")
    assert "--allow_unsafe_code" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_an_unknown_processor_is_refused(run, monkeypatch):
    system = sandbox._system()
    assert seccomp_filter("riscv64") == b""
    monkeypatch.setattr(sandbox, "_system", lambda: (*system[:2], b""))
    assert "no table of system calls" in run("print(1)").message
    assert run_python("print(1)", allow_unsafe=True).stdout == "1\n"


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_refused(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert sandbox_landlock.landlock_version() == 0
    assert sandbox_worker._isolate({"limits": []}) == f"Landlock and seccomp need Linux, this is {platform}"


def test_allowing_the_unsafe_keeps_the_isolation_there_is(run):
    assert run_python("open('/etc/passwd')", allow_unsafe=True).error == "exception"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"timeout_s": 0}, "timeout_s 0 is not positive"),
        ({"cpu_s": -1}, "cpu_s -1 is not positive"),
        ({"memory_bytes": 1 << 20}, "memory_bytes 1048576 is less than 67108864"),
    ],
)
def test_limits_that_cannot_work(limits, message):
    with pytest.raises(UserError, match=message):
        SandboxLimits(**limits)


def _verdict(code: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the kernel would answer: the filter interpreted by the rules of classic BPF."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, AUDIT_ARCHES.get(machine, 0x40000003), 0, *padded)
    steps = [struct.unpack_from("<HBBI", code, i) for i in range(0, len(code), 8)]
    position = accumulator = 0
    while True:
        operation, if_true, if_false, operand = steps[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x15:
            position += if_true if accumulator == operand else if_false
        elif operation == 0x45:
            position += if_true if accumulator & operand else if_false
        else:
            assert operation == 0x06
            return operand


ALLOW, DENY, KILL = 0x7FFF0000, 0x50001, 0x80000000


@pytest.mark.parametrize("machine", AUDIT_ARCHES)
def test_filter_admits_the_listed_calls_and_no_other(machine):
    column, code = list(AUDIT_ARCHES).index(machine), seccomp_filter(machine)
    listed = {numbers[column] for numbers in SYSCALLS.values()} - {None}
    checked = {numbers[column] for numbers in CHECKED_SYSCALLS.values()} - {None}
    for number in range(1024):
        if number not in checked:
            assert _verdict(code, machine, number) == (ALLOW if number in listed else DENY)
            assert _verdict(code, machine, number | 0x40000000) == DENY
            assert _verdict(code, "i386", number) == KILL


@pytest.mark.parametrize("machine", AUDIT_ARCHES)
def test_filter_looks_at_arguments(machine):
    column, code = list(AUDIT_ARCHES).index(machine), seccomp_filter(machine)

    def verdict(name: str, *arguments: int) -> int:
        return _verdict(code, machine, CHECKED_SYSCALLS[name][column], *arguments)

    for command in range(1100):
        assert verdict("fcntl", 1, command) == (ALLOW if command in (0, 1, 2, 3, 1030) else DENY)
    assert verdict("ioctl", 1, 0x5401) == ALLOW
    assert verdict("ioctl", 1, 0x5412) == DENY  # TIOCSTI types into the terminal
    assert verdict("prlimit64", 0, 7, 0, 1 << 40) == ALLOW
    for hostile in ((1, 7, 0, 0), (0, 7, 1, 0), (0, 7, 1 << 32, 0)):
        assert verdict("prlimit64", *hostile) == DENY
    for flags in range(16):
        assert verdict("renameat2", 0, 0, 0, 0, flags) == (ALLOW if flags < 3 else DENY)  # 4 makes a device node
    for name, before in (("open", [0]), ("openat", [0, 0])):
        if CHECKED_SYSCALLS[name][column] is not None:
            for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_TRUNC, os.O_CLOEXEC):
                assert verdict(name, *before, flags) == ALLOW
            for flags in (
                os.O_TRUNC,
                os.O_TRUNC | os.O_CLOEXEC,
                os.O_PATH,
                os.O_PATH | os.O_RDWR,
                os.O_TRUNC | 3 << 32,
            ):
                assert verdict(name, *before, flags) == DENY


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/*/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_of_system_calls_are_the_kernels(machine, header):
    found = sorted(Path("/").glob(header[1:]))
    if not found:
        pytest.skip("the kernel's headers are not installed")
    text = found[0].read_text()
    defined = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    # The generic table names some calls after their 64-bit form.
    defined |= {"newfstatat": defined.get("newfstatat", defined.get("fstatat", -1))}
    column = list(AUDIT_ARCHES).index(machine)
    ours = {name: numbers[column] for name, numbers in (SYSCALLS | CHECKED_SYSCALLS).items()}
    assert {name: number for name, number in ours.items() if number != defined.get(name)} == {}


@pytest.mark.parametrize(
    ("version", "size", "num_rights"),
    [(0, 0, 0), (1, 8, 13), (2, 8, 14), (3, 8, 15), (4, 16, 15), (5, 16, 16), (9, 24, 16)],
)
def test_landlock_handles_all_that_its_version_knows(version, size, num_rights):
    attributes = sandbox_landlock.ruleset_attributes(version)
    assert len(attributes) == size
    if size:
        handled = int.from_bytes(attributes[:8], sys.byteorder)
        assert handled == 2**num_rights - 1
        assert sandbox_landlock.folder_rights(version) & ~handled == 0

"""Running Python that a model wrote, in a process that can do nothing but compute.

Each program gets a fresh interpreter, which before it runs a line of it gives up, for good and without needing privileges:

- files, but for its own temporary folder, the standard library and the system's shared libraries (Landlock,
  `sandbox_landlock`);
- every system call outside a list of some seventy: no sockets, processes, threads or signals (seccomp, `sandbox_seccomp`);
- all capabilities, if it was started by root;
- memory, CPU time, size of files, number of open files (resource limits).

The caller watches the rest: time on the clock, length of the output, size of the folder and of what was removed from it and
is still held open or mapped. Nothing here uses signal handlers or changes the calling process, so any number of threads may
run programs at once.

Where the kernel lacks any of it nothing runs, unless `allow_unsafe` says so. Three things are not hidden: whether a path
exists and its size and times (stat), the machine's clock and load, and how the worker reports: a program made to deceive can
claim that it ended well, because it runs in the process that reports. Replacing the functions that report is not enough for it;
reading the token from its descriptor is. What it cannot do is touch anything outside.
"""

import contextlib
import functools
import marshal
import os
import platform
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import sandbox_landlock, sandbox_worker
from nanochat_lit.engine.sandbox_seccomp import seccomp_filter

SandboxError = Literal["exception", "exit", "timeout", "memory", "output", "files", "crash", "refused"]
"""How a program failed: it raised; it ended itself; one of its limits; killed by a signal; isolation is missing."""

MIN_MEMORY_BYTES = 64 << 20
"""What the interpreter itself needs, with some modules of the standard library."""

_POLL_S = 0.05
_ENTRY_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What one program may use."""

    timeout_s: float = 5.0
    """Seconds on the clock, with the interpreter's start."""
    cpu_s: int = 5
    """Seconds of processor time."""
    memory_bytes: int = 256 << 20
    """Address space, with the interpreter's own (about 20 MB)."""
    output_bytes: int = 64 << 10
    """Length of the standard output, and of the standard error."""
    folder_bytes: int = 16 << 20
    """Size of all files in its folder, where an empty file counts as 4096 bytes, and of removed files that it holds; a
    sixteenth of it for one file."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "cpu_s", "output_bytes", "folder_bytes"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)} is not positive; give more than 0")
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise UserError(
                f"memory_bytes {self.memory_bytes} is under {MIN_MEMORY_BYTES}, which Python needs to start"
            )

    @property
    def file_bytes(self) -> int:
        """Size of one file."""
        return max(1, self.folder_bytes // 16)

    def resources(self) -> list[tuple[str, int, int]]:
        """Name of the resource, soft and hard limit; after the soft limit of time the system warns, then kills."""
        same = {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_NPROC": 0,
        }
        return [("RLIMIT_CPU", self.cpu_s, self.cpu_s + 1), *((name, value, value) for name, value in same.items())]


@dataclass(frozen=True, kw_only=True)
class SandboxResult:
    """How a program ended."""

    error: SandboxError | None
    """None if the program ran to its end."""
    message: str
    """What went wrong, in a line: the exception, the limit, the signal, the isolation that is missing."""
    stdout: str
    """What it printed; bytes that are not UTF-8 are replaced."""
    stderr: str
    """What it wrote to the standard error; the traceback if it raised."""
    duration_s: float
    """Seconds on the clock, with the interpreter's start."""

    @property
    def ok(self) -> bool:
        """Whether the program ran to its end."""
        return self.error is None

    def __bool__(self) -> bool:
        raise TypeError(
            "a SandboxResult is neither true nor false; ask its .ok, which is whether the program ran to its end"
        )


def run_python(program: str, limits: SandboxLimits | None = None, *, allow_unsafe: bool = False) -> SandboxResult:
    """Run a program as `__main__` of a fresh interpreter that can do nothing but compute.

    It sees the standard library only, an empty standard input, and a folder of its own where it may write plain files. May
    be called from many threads at once.

    Args:
        program: Python source.
        limits: None means the defaults of `SandboxLimits`.
        allow_unsafe: Run it also where the kernel cannot isolate it, with as much isolation as there is.

    Returns:
        How it ended. Where isolation is missing and `allow_unsafe` is False: an error "refused", and nothing was run.
    """
    limits = limits or SandboxLimits()
    start = time.monotonic()
    token = secrets.token_hex(sandbox_worker.TOKEN_BYTES // 2).encode()
    with tempfile.TemporaryDirectory(prefix="nanochat-program-", ignore_cleanup_errors=True) as folder:
        Path(folder, "program.py").write_bytes(program.encode("utf-8", "surrogatepass"))
        worker = _start_worker(folder)
        try:
            _send(worker, _policy(limits, folder, allow_unsafe) + token)
            streams = (
                _Collector(worker.stdout, limits.output_bytes),
                _Collector(worker.stderr, limits.output_bytes + 16 * sandbox_worker.MAX_MESSAGE_CHARS),
            )
            stopped = _watch(worker, streams, Path(folder), limits, deadline=start + limits.timeout_s)
        finally:
            _end(worker)
        for stream in streams:
            stream.finish()
    stdout, (stderr, _, report) = streams[0].data, streams[1].data.partition(token)
    if any(stream.is_full for stream in streams):
        stopped = "output", f"wrote more than {limits.output_bytes} bytes"
    error, message = stopped or _outcome(report.decode("utf-8", "replace"), worker.returncode)
    stdout, stderr = (data[: limits.output_bytes].decode("utf-8", "replace") for data in (stdout, stderr))
    duration_s = time.monotonic() - start
    return SandboxResult(error=error, message=message, stdout=stdout, stderr=stderr, duration_s=duration_s)


def missing_isolation() -> str | None:
    """Why this system does not run untrusted programs, in a line; None if it does.

    It is found out by running an empty program, in some tens of milliseconds.
    """
    result = run_python("")
    return None if result.ok else result.message


class _Collector:
    """Reads a pipe in a thread of its own, until it ends or holds more than it may."""

    def __init__(self, pipe: IO[bytes] | None, max_bytes: int) -> None:
        assert pipe is not None
        self.data = bytearray()
        self.is_full = False
        self._max_bytes = max_bytes
        self.thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self.thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while not self.is_full and (part := os.read(pipe.fileno(), 1 << 16)):
                self.data += part
                self.is_full = len(self.data) > self._max_bytes

    def finish(self) -> None:
        """Wait for the end; only descendants of an unsafe program can keep a pipe open, and they are left to it."""
        self.thread.join(1.0)


def _start_worker(folder: str) -> subprocess.Popen[bytes]:
    # Two variables an interpreter may need to start. The worker clears them, but a program can still find them in its memory.
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    return subprocess.Popen(  # noqa: S603 - this interpreter on a file of this package
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", sandbox_worker.__file__],
        cwd=folder,
        env=kept,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )


def _policy(limits: SandboxLimits, folder: str, allow_unsafe: bool) -> bytes:
    """What the worker gives up, with its length before it. Short enough for an empty pipe, so writing it never blocks."""
    version, libraries, code = _system()
    policy = {
        "allow_unsafe": allow_unsafe,
        "limits": limits.resources(),
        "ruleset": sandbox_landlock.ruleset_attributes(version),
        "rules": [*libraries, (folder, sandbox_landlock.folder_rights(version))],
        "filter": code,
    }
    data = marshal.dumps(policy, 2)
    return len(data).to_bytes(4, "little") + data


@functools.cache
def _system() -> tuple[int, list[tuple[str, int]], bytes]:
    """Landlock's version, the rules for shared libraries, and the filter of system calls."""
    return (
        sandbox_landlock.landlock_version(),
        sandbox_landlock.library_rules(),
        seccomp_filter(platform.machine()),
    )


def _send(worker: subprocess.Popen[bytes], request: bytes) -> None:
    assert worker.stdin is not None
    # A worker that could not start closes the pipe; its standard error says why.
    with contextlib.suppress(BrokenPipeError), worker.stdin:
        worker.stdin.write(request)


def _watch(
    worker: subprocess.Popen[bytes],
    streams: tuple[_Collector, ...],
    folder: Path,
    limits: SandboxLimits,
    *,
    deadline: float,
) -> tuple[SandboxError, str] | None:
    """Wait until the worker ends by itself, or has to be stopped, and then say why."""
    while worker.poll() is None:
        if any(stream.is_full for stream in streams):
            return "output", f"wrote more than {limits.output_bytes} bytes"
        if _folder_bytes(folder) + _held_bytes(worker.pid, limits.file_bytes) > limits.folder_bytes:
            return "files", f"its files are larger than {limits.folder_bytes} bytes"
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            return "timeout", f"ran longer than {limits.timeout_s:g} s"
        reading = [stream.thread for stream in streams if stream.thread.is_alive()]
        if reading:  # a pipe that closes is the first sign of the end
            reading[0].join(min(_POLL_S, remaining_s))
        else:
            time.sleep(0.001)
    return None


def _folder_bytes(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += max(_ENTRY_BYTES, entry.stat(follow_symlinks=False).st_size)
    return total


def _held_bytes(pid: int, file_bytes: int) -> int:
    """Size of files that a process has removed and still holds: those that it maps, at their largest, and those open."""
    held: dict[str, int] = {}
    with contextlib.suppress(OSError):  # it has ended, or there is no /proc
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if fields[-1].endswith(" (deleted)"):
                held[fields[4]] = file_bytes
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                about = entry.stat()
                if stat.S_ISREG(about.st_mode) and about.st_nlink == 0:
                    held.setdefault(str(about.st_ino), about.st_size)
    return sum(held.values())


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Kill what still runs, with the descendants an unsafe program may have."""
    if worker.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "win32":
                worker.kill()
            else:
                os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _outcome(report: str, status: int) -> tuple[SandboxError | None, str]:
    """Error and message from the worker's report, or from the way it died without one."""
    outcome, _, message = report.partition("\n")
    if outcome == "ok":
        return None, ""
    if outcome == "refused":
        return (
            "refused",
            f"not run, for want of isolation: {message}; --allow_unsafe_code true (allow_unsafe=True) runs it all the same",
        )
    errors: dict[str, SandboxError] = {name: name for name in get_args(SandboxError)}
    if outcome in errors:
        return errors[outcome], message
    if status >= 0:
        return "exit", f"the process ended with status {status} before the program's end"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if name == "SIGXCPU":
        return "timeout", "used more processor time than it may"
    return "crash", f"killed by {name}"

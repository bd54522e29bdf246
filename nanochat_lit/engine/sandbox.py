"""Sandbox for Python code written by a model.

Each program runs in a new interpreter, which first restricts itself irrevocably, without privileges:

- files: only its temporary folder, the standard library and the system's shared libraries (Landlock,
  `sandbox_landlock`);
- system calls: a list of about seventy, without sockets, processes, threads or signals (seccomp, `sandbox_seccomp`);
- capabilities: none, if started by root;
- memory, CPU time, file size and open files (resource limits).

The caller enforces the other limits: wall-clock time, output length, and the size of the folder, including removed
files that are still open or mapped. It uses no signal handlers and does not change the calling process, so programs can
run from any number of threads.

If the kernel lacks a feature, programs are not run, unless `allow_unsafe` is set. Three things are not isolated: the
existence, size and times of paths (stat), the machine's clock and load, and the success report. A malicious program can
claim success, because it runs in the reporting process: replacing the report functions has no effect, but reading the
token from its descriptor does. It cannot modify anything outside.
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
"""Kinds of failure: exception, exit, a limit, a signal, missing isolation."""

MIN_MEMORY_BYTES = 64 << 20
"""Minimum memory of the interpreter with some standard modules."""

_POLL_S = 0.05
_ENTRY_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """Limits of one program."""

    timeout_s: float = 5.0
    """Wall-clock time in seconds, including interpreter start."""
    cpu_s: int = 5
    """CPU time in seconds."""
    memory_bytes: int = 256 << 20
    """Address space, including the interpreter's (about 20 MB)."""
    output_bytes: int = 64 << 10
    """Maximum length of stdout and of stderr."""
    folder_bytes: int = 16 << 20
    """Total size of the files, including removed files still open. An empty file counts as 4096 bytes; the limit of one
    file is a sixteenth."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "cpu_s", "output_bytes", "folder_bytes"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)} is not positive; use more than 0")
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise UserError(
                f"memory_bytes {self.memory_bytes} is less than {MIN_MEMORY_BYTES}, the minimum for Python to start"
            )

    @property
    def file_bytes(self) -> int:
        """Maximum size of one file."""
        return max(1, self.folder_bytes // 16)

    def resources(self) -> list[tuple[str, int, int]]:
        """Return (name, soft limit, hard limit) of each resource."""
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
    """Result of a program."""

    error: SandboxError | None
    """None if the program ran to its end."""
    message: str
    """One line on the failure: exception, limit, signal, or missing isolation."""
    stdout: str
    """Standard output; invalid UTF-8 is replaced."""
    stderr: str
    """Standard error, including the traceback of an exception."""
    duration_s: float
    """Wall-clock time in seconds, including interpreter start."""

    @property
    def ok(self) -> bool:
        """Whether the program ran to its end."""
        return self.error is None

    def __bool__(self) -> bool:
        raise TypeError("a SandboxResult cannot be used as a bool; use .ok, whether the program ran to its end")


def run_python(program: str, limits: SandboxLimits | None = None, *, allow_unsafe: bool = False) -> SandboxResult:
    """Run a program as `__main__` of a new, isolated interpreter.

    It has access to the standard library, an empty standard input, and a temporary folder for plain files. Thread-safe.

    Args:
        program: Python source.
        limits: Limits; None uses the defaults of `SandboxLimits`.
        allow_unsafe: Run it even if the kernel cannot isolate it fully.

    Returns:
        The result; an error "refused" if isolation is not available and `allow_unsafe` is False, without running it.
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
    """Return one line on why this system cannot isolate programs; None if it can.

    Runs an empty program, which takes some tens of milliseconds.
    """
    result = run_python("")
    return None if result.ok else result.message


class _Collector:
    """Reads a pipe in a thread until its end or its limit."""

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
        """Wait for the end; a pipe that descendants of an unsafe program keep open is abandoned."""
        self.thread.join(1.0)


def _start_worker(folder: str) -> subprocess.Popen[bytes]:
    # Variables that the interpreter may need to start. The worker clears them, but they remain in its memory.
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
    """Return the length-prefixed policy of the worker; fits an empty pipe, so that writing never blocks."""
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
    """Return Landlock's version, the rules for shared libraries, and the system call filter."""
    return (
        sandbox_landlock.landlock_version(),
        sandbox_landlock.library_rules(),
        seccomp_filter(platform.machine()),
    )


def _send(worker: subprocess.Popen[bytes], request: bytes) -> None:
    assert worker.stdin is not None
    # A worker that cannot start closes the pipe; its standard error has the reason.
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
    """Wait until the worker exits (None) or exceeds a limit; return the error and its message."""
    while worker.poll() is None:
        if any(stream.is_full for stream in streams):
            return "output", f"wrote more than {limits.output_bytes} bytes"
        if _folder_bytes(folder) + _held_bytes(worker.pid, limits.file_bytes) > limits.folder_bytes:
            return "files", f"its files are larger than {limits.folder_bytes} bytes"
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            return "timeout", f"ran longer than {limits.timeout_s:g} s"
        reading = [stream.thread for stream in streams if stream.thread.is_alive()]
        if reading:  # the closed pipe is the first sign of the end
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
    """Return the size of removed files that a process still has open or mapped (at their largest)."""
    held: dict[str, int] = {}
    with contextlib.suppress(OSError):  # the process has ended, or /proc is missing
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
    """Kill the worker and the descendants of an unsafe program."""
    if worker.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "win32":
                worker.kill()
            else:
                os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _outcome(report: str, status: int) -> tuple[SandboxError | None, str]:
    """Return error and message from the worker's report, or from its exit status."""
    outcome, _, message = report.partition("\n")
    if outcome == "ok":
        return None, ""
    if outcome == "refused":
        hint = "--allow_unsafe_code true (allow_unsafe=True) runs it anyway"
        return "refused", f"not run, because isolation is not available: {message}; {hint}"
    errors: dict[str, SandboxError] = {name: name for name in get_args(SandboxError)}
    if outcome in errors:
        return errors[outcome], message
    if status >= 0:
        return "exit", f"the process ended with status {status} before the program's end"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if name == "SIGXCPU":
        return "timeout", "exceeded its CPU time limit"
    return "crash", f"killed by {name}"

"""Compilers: those that torch.compile needs, and C++ sources of this package, compiled and cached per processor type."""

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from nanochat_lit.common.paths import atomic_write, cache_folder, lock_file


def cpp_compiler() -> list[str] | None:
    """Return the command of the C++ compiler, CXX (perhaps several words: "ccache g++") or an installed one, or None."""
    candidates = ("cl",) if platform.system() == "Windows" else ("g++", "clang++", "c++")
    for words in [_words(os.environ["CXX"])] if os.environ.get("CXX") else [[name] for name in candidates]:
        if words and (program := shutil.which(words[0])):
            return [program, *words[1:]]
    return None


TRITON_DEVICES = ("cuda", "xpu")
"""Device types supported by Triton; "cuda" includes ROCm."""


def has_cpp_compiler() -> bool:
    """Return whether a C++ compiler is installed, which torch.compile needs on a CPU."""
    return cpp_compiler() is not None


def _words(command: str) -> list[str]:
    if shutil.which(command):  # a path that contains spaces
        return [command]
    try:
        return shlex.split(command)
    except ValueError:  # unbalanced quotes
        return [command]


def has_c_compiler() -> bool:
    """Return whether a C compiler is installed, which Triton needs for kernel launchers."""
    configured = os.environ.get("CC", "")
    if configured:
        return shutil.which(configured.split()[0]) is not None
    return any(shutil.which(name) for name in ("gcc", "clang", "cc", "cl"))


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


def missing_compiler(device_type: str) -> str:
    """Return what torch.compile lacks on a device type (cpu, cuda including ROCm, xpu), as text; empty if nothing."""
    if device_type not in (*TRITON_DEVICES, "cpu"):
        return f"torch.compile is not supported on {device_type}"
    if device_type in TRITON_DEVICES and not has_triton():
        return "Triton is not installed"
    if device_type in TRITON_DEVICES and not has_c_compiler():
        return "Triton needs a C compiler (gcc or clang)"
    return "" if has_cpp_compiler() else "no C++ compiler found (g++ or clang++)"


def use_configured_compiler() -> None:
    """Wrap a CXX of several words ("ccache g++") in a script, because TorchInductor expects a single program."""
    compiler = cpp_compiler()
    if compiler is None or len(compiler) == 1 or "CXX" not in os.environ:
        return
    from nanochat_lit.common.torch_internals import set_inductor_compiler

    text = f'#!/bin/sh\nexec {shlex.join(compiler)} "$@"\n'
    name = Path(
        next((word for word in reversed(compiler) if "++" in word), compiler[0])
    ).name  # TorchInductor looks for g++
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    script = cache_folder() / "compilers" / key / name
    if not os.access(script, os.X_OK):
        with atomic_write(script, "w") as file:
            file.write(text)
        script.chmod(0o755)
    set_inductor_compiler(str(script))


FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-Wno-psabi")
BUILD_TIMEOUT_S = 300.0
HEADERS = Path(__file__).parent


def kept_code(path: Path, build: Callable[[Path], None]) -> Path:
    """Return a file of compiled code; `build` writes it if it is missing, damaged or owned by another user.

    Its SHA-256 is stored next to it. Rebuilds are reported, unless the file was missing. If another user can write to
    its folder in the cache, a temporary folder is used instead.
    """
    path = _own_folder(path.parent) / path.name
    if _defect(path) is None:
        return path
    with path.with_suffix(".lock").open("w") as lock:
        lock_file(lock)  # waits for another process that builds it
        defect = _defect(path)
        if defect is not None:
            if path.exists() or path.is_symlink():
                _say(f"{path} {defect}; rebuilding it")
                path.unlink()
            build(path)
            path.chmod(0o700)
            path.with_suffix(".sha256").write_text(_hash(path), "utf-8")
    return path


@lru_cache(maxsize=8)
def _own_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    defect = _foreign(folder)
    if defect is None:
        return folder
    _say(
        f"{folder} {defect}; compiled code is built only for this process (set XDG_CACHE_HOME to a folder that you own)"
    )
    temporary = Path(tempfile.mkdtemp(prefix="nanochat-lit-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def _defect(path: Path) -> str | None:
    """Return why a cached file must not be loaded; None if it is valid."""
    try:
        return _foreign(path) or (
            None if path.with_suffix(".sha256").read_text("utf-8") == _hash(path) else "is damaged"
        )
    except (OSError, UnicodeDecodeError):
        return "is not complete"


def _foreign(path: Path) -> str | None:
    """Return why another user could have written a file or folder; None if impossible."""
    if not hasattr(os, "geteuid"):  # Windows
        return None
    for about in (path.lstat(), path.stat()):  # a link and its target
        if about.st_uid not in (os.geteuid(), 0):
            return "belongs to another user"
    return "can be written by other users" if path.stat().st_mode & 0o022 else None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the reason why a start is slow


def cpp_library(source: Path) -> ctypes.CDLL | None:
    """Load a C++ file's `extern "C"` functions; the first use on a machine compiles it (a few seconds).

    It may include this folder's headers. It uses torch's OpenMP runtime: a second runtime would have threads that spin
    on the same cores. Returns None if it cannot be built or loaded (see `library_problem`).
    """
    return _load(source)[0]


def library_problem(source: Path) -> str:
    """Return in one line why a library could not be loaded; empty if it was."""
    return _load(source)[1]


def instructions(library: ctypes.CDLL) -> str:
    """Return the instruction set that a library was built for, such as AVX2; see vectors.h."""
    library.instructions.restype = ctypes.c_char_p
    return library.instructions().decode()


@lru_cache(maxsize=8)
def _load(source: Path) -> tuple[ctypes.CDLL | None, str]:
    compiler = cpp_compiler()
    if compiler is None:
        return None, "no C++ compiler found (g++ or clang++)"
    texts = [path.read_text("utf-8") for path in (source, *sorted(HEADERS.glob("*.h")))]
    key = hashlib.sha256("\0".join([*texts, *FLAGS, *_machine(compiler)]).encode()).hexdigest()
    path = cache_folder() / "libraries" / f"{source.stem}-{key[:20]}.so"
    try:
        return ctypes.CDLL(str(kept_code(path, lambda path: _build(compiler, source, path)))), ""
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return None, next((line for line in lines if "error" in line), lines[0]).strip()


def _machine(compiler: list[str]) -> list[str]:
    """Return the identity of compiler and processor, because a home folder may be shared between machines."""
    version = _run([*compiler, "--version"])
    facts = [*compiler, platform.machine(), version.stdout.decode(errors="replace")]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return facts


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a compiler without a shell; its name comes from CXX or a fixed list."""
    return subprocess.run(command, capture_output=True, timeout=BUILD_TIMEOUT_S, check=False)  # noqa: S603


def _build(compiler: list[str], source: Path, path: Path) -> None:
    """Compile to a temporary file and rename it, so that processes can build concurrently."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as name:
        made, library = Path(name) / "made.o", Path(name) / "made.so"
        for threads in (["-fopenmp"], []):  # some compilers lack OpenMP
            command = [*compiler, *FLAGS, *threads, f"-I{HEADERS}", "-c", str(source), "-o", str(made)]
            done = _run(command)
            if done.returncode == 0:
                break
        else:
            raise OSError(done.stderr.decode(errors="replace")[-2000:])
        undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        command = [*compiler, "-shared", *undefined, str(made), "-o", str(library)]
        _run(command).check_returncode()
        library.replace(path)

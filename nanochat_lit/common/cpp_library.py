"""Compiles and loads C++ sources of this package, cached per processor type."""

import ctypes
import hashlib
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from nanochat_lit.common.compilers import cpp_compiler
from nanochat_lit.common.kept_code import kept_code
from nanochat_lit.common.paths import cache_folder

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-Wno-psabi")
BUILD_TIMEOUT_S = 300.0
HEADERS = Path(__file__).parent


def cpp_library(source: Path) -> ctypes.CDLL | None:
    """Load a library; the first use on a machine compiles it (a few seconds).

    It uses torch's OpenMP runtime. A second runtime would have threads that spin on the same cores.

    Args:
        source: A C++ file whose functions are `extern "C"`; it may include this folder's headers.

    Returns:
        The library; None if it cannot be built or loaded (see `library_problem`).
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
    facts = [*compiler[1:], platform.machine(), version.stdout.decode(errors="replace")]
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

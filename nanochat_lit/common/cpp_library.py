"""A C++ source of this package as a library in this process, built once for this processor and kept."""

import ctypes
import hashlib
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from nanochat_lit.common.compilers import cpp_compiler
from nanochat_lit.common.kept_code import kept_code
from nanochat_lit.common.paths import user_cache

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-Wno-psabi")
BUILD_TIMEOUT_S = 300.0
HEADERS = Path(__file__).parent


def cpp_library(source: Path) -> ctypes.CDLL | None:
    """Load a library, compiled on its first use on this machine (some seconds).

    Threads are those of the OpenMP that torch has loaded: the library is linked to none of its own, whose threads would
    wait for work on the same cores.

    Args:
        source: A C++ file whose functions are `extern "C"`; it may include this folder's headers.

    Returns:
        The library; None where it cannot be built or loaded, for which `library_problem` has the reason.
    """
    return _load(source)[0]


def library_problem(source: Path) -> str:
    """Why a library is missing, in one line; empty if it is not."""
    return _load(source)[1]


def instructions(library: ctypes.CDLL) -> str:
    """Name of the instruction set that a library was built for, such as AVX2; see vectors.h."""
    library.instructions.restype = ctypes.c_char_p
    return library.instructions().decode()


@lru_cache(maxsize=8)
def _load(source: Path) -> tuple[ctypes.CDLL | None, str]:
    compiler = cpp_compiler()
    if compiler is None:
        return None, "no C++ compiler found (g++ or clang++)"
    texts = [path.read_text("utf-8") for path in (source, *sorted(HEADERS.glob("*.h")))]
    key = hashlib.sha256("\0".join([*texts, *FLAGS, *_machine(compiler)]).encode()).hexdigest()
    path = cache_folder() / f"{source.stem}-{key[:20]}.so"
    try:
        return ctypes.CDLL(str(kept_code(path, lambda path: _build(compiler, source, path)))), ""
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return None, next((line for line in lines if "error" in line), lines[0]).strip()


def cache_folder() -> Path:
    """Where built libraries are kept: this user's cache."""
    return user_cache() / "nanochat-lit" / "libraries"


def _machine(compiler: list[str]) -> list[str]:
    """What `-march=native` and the compiler mean here; a home folder may be shared by different machines."""
    version = _run([*compiler, "--version"])
    facts = [*compiler[1:], platform.machine(), version.stdout.decode(errors="replace")]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return facts


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """A compiler, without a shell; its name is the user's (CXX) or one of ours."""
    return subprocess.run(command, capture_output=True, timeout=BUILD_TIMEOUT_S, check=False)  # noqa: S603


def _build(compiler: list[str], source: Path, path: Path) -> None:
    """Compile to a temporary name and rename, so that two processes may do it at once."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as name:
        made, library = Path(name) / "made.o", Path(name) / "made.so"
        for threads in (["-fopenmp"], []):  # not every compiler has OpenMP
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

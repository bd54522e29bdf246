"""The C++ kernels on other instruction sets, under an emulator, under sanitizers, and without a warning."""

import math
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import nanochat_lit
from nanochat_lit.common.compilers import FLAGS, HEADERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]
PACKAGE = Path(nanochat_lit.__file__).parent
KERNELS = sorted(PACKAGE.rglob("*_kernel.cpp"))
PORTABLE_FLAGS = [flag for flag in FLAGS if not flag.startswith(("-O", "-march"))]
INCLUDES = [f"-I{HEADERS}", f"-I{PACKAGE / 'model'}"]
X86 = {
    "x86-64": [],
    "x86-64-v3": [],
    "alderlake": [],
    "skylake-avx512": [],
    "sapphirerapids": ["-mamx-bf16", "-mamx-int8"],
}
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def check_program(folder: Path, *flags: str, compiler: str = "g++") -> Path:
    """kernel_check.cpp, which includes the decode kernel, with the other kernels."""
    program = folder / "kernel_check"
    sources = [Path(__file__).with_name("kernel_check.cpp"), *(k for k in KERNELS if k.name != "decode_kernel.cpp")]
    command = [compiler, *PORTABLE_FLAGS, "-O1", "-fopenmp", *flags, *INCLUDES, *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def output(*command: str | Path) -> list[tuple[str, list[float]]]:
    """Named rows of numbers."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    return [(line.split()[0], [float(word) for word in line.split()[1:]]) for line in done.stdout.splitlines()]


def assert_near(ours: list[tuple[str, list[float]]], expected: list[tuple[str, list[float]]]) -> None:
    for (name, numbers), (expected_name, expected_numbers) in zip(ours, expected, strict=True):
        assert (name, len(numbers)) == (expected_name, len(expected_numbers))
        # the last bit of a state can round one of its 8-bit inputs up instead of down; the layers alone are within 1e-4
        tolerance = (1e-2 if name.startswith("rounded") else 1e-4) * max(map(abs, expected_numbers))
        assert math.dist(numbers, expected_numbers) < tolerance * len(numbers) ** 0.5, name


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[float]]]:
    """What this processor computes under sanitizers."""
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return output(check_program(tmp_path_factory.mktemp("native"), "-march=native", *sanitizers))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[float]]]:
    """This processor without its bfloat16 instructions, which round the inputs of bfloat16 weights too."""
    without = ["-mno-avx512bf16", "-mno-amx-bf16"] if platform.machine() == "x86_64" else []
    return output(check_program(tmp_path_factory.mktemp("reference"), "-march=native", *without))


def test_sanitizers_find_nothing(native: list[tuple[str, list[float]]]) -> None:
    names = {"linear", "prompt", "decode", "rounded_prompt", "rounded_decode", "sample", "loss", "gradient", "muon"}
    assert {name for name, _ in native} == names


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")
def test_any_x86_processor_computes_the_same(reference: list[tuple[str, list[float]]], tmp_path: Path) -> None:
    assert_near(output(check_program(tmp_path, "-march=x86-64")), reference)


@pytest.mark.skipif(
    shutil.which(ARM_COMPILER) is None or shutil.which(ARM_EMULATOR) is None,
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)
@pytest.mark.parametrize("architecture", ["armv8-a", "armv8.2-a+dotprod"])
def test_arm_processors_compute_the_same(
    reference: list[tuple[str, list[float]]], architecture: str, tmp_path: Path
) -> None:
    program = check_program(tmp_path, f"-march={architecture}", "-static", compiler=ARM_COMPILER)
    assert_near(output(ARM_EMULATOR, "-cpu", "max", program), reference)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs g++ for x86-64")
@pytest.mark.parametrize("architecture", X86)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.stem)
def test_there_are_no_warnings(kernel: Path, architecture: str) -> None:
    warnings = ["-Wall", "-Wextra", "-Werror", f"-march={architecture}", *X86[architecture]]
    command = ["g++", *PORTABLE_FLAGS, *warnings, "-fopenmp", "-fsyntax-only", *INCLUDES, str(kernel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

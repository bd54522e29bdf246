"""Hardware capabilities: devices, dtypes, peak FLOP/s, memory.

Importing this module probes nothing.
"""

import math
import os
import platform
import re
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nanochat_lit.common.errors import UserError

COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

BFLOAT16_CAPABILITY = (8, 0)
"""Minimum CUDA compute capability for bfloat16 tensor cores (Ampere)."""

FLOAT16_CAPABILITY = (7, 0)
"""Minimum CUDA compute capability for float16 tensor cores (Volta)."""

_BFLOAT16_ROCM = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""Name prefixes of AMD architectures with bfloat16 matrix instructions."""

CPUINFO = Path("/proc/cpuinfo")
"""Linux's processor description; torch provides one only from 2.10 on."""

_BFLOAT16_CPU = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""Linux flags of processor instructions for bfloat16 matmuls."""


class Card(NamedTuple):
    """A GPU model, from the vendor's data sheet."""

    words: tuple[str, ...]  # words that all occur in the driver's device name
    peak_flops_per_s: float  # peak of dense matmuls with 16-bit inputs and 32-bit accumulation, without sparsity
    gib: int  # size of the memory
    capability: tuple[int, int] | None = None  # CUDA compute capability; None for other vendors


# Fields of Card. The first match is used, so more specific entries come first.
_CARDS: tuple[tuple[Any, ...], ...] = (
    (("gb200",), 2.5e15, 186, (10, 0)),
    (("b200",), 2.25e15, 180, (10, 0)),
    (("h200",), 989e12, 141, (9, 0)),
    (("h100", "nvl"), 835e12, 94, (9, 0)),
    (("h100", "pcie"), 756e12, 80, (9, 0)),
    (("h100",), 989e12, 80, (9, 0)),
    (("gh200",), 989e12, 96, (9, 0)),
    (("h800", "pcie"), 756e12, 80, (9, 0)),
    (("h800",), 989e12, 80, (9, 0)),
    (("a100", "40gb"), 312e12, 40, (8, 0)),
    (("a100",), 312e12, 80, (8, 0)),
    (("a800",), 312e12, 80, (8, 0)),
    (("a40",), 149.7e12, 48, (8, 6)),
    (("a10g",), 70e12, 24, (8, 6)),
    (("a10",), 125e12, 24, (8, 6)),
    (("l40s",), 362e12, 48, (8, 9)),
    (("l40",), 181e12, 48, (8, 9)),
    (("l4",), 121e12, 24, (8, 9)),
    (("5090",), 209e12, 32, (12, 0)),
    (("4090",), 165e12, 24, (8, 9)),
    (("3090",), 71e12, 24, (8, 6)),
    (("v100",), 125e12, 16, (7, 0)),
    (("t4",), 65e12, 16, (7, 5)),
    (("mi300x",), 1307e12, 192),
    (("mi250x",), 383e12, 128),
)


def resolve_compute_dtype(requested: str = "auto", device: str | torch.device | None = None) -> torch.dtype:
    """Return the dtype of activations and matmuls: auto (the device's `native_dtype`), bfloat16, float16 or float32.

    The environment variable NANOCHAT_DTYPE overrides `requested`; without a device it is for `default_device()`. Raises
    UserError for other words, and for bfloat16 on a GPU that emulates it.
    """
    override = os.environ.get("NANOCHAT_DTYPE", "")
    word, origin = (override, "environment variable NANOCHAT_DTYPE") if override else (requested, "compute_dtype")
    if word != "auto" and word not in COMPUTE_DTYPES:
        raise UserError(f"{origin} {word!r} is unknown; choose one of auto, {', '.join(COMPUTE_DTYPES)}")
    if word in ("float16", "float32"):
        return COMPUTE_DTYPES[word]
    device = default_device() if device is None else torch.device(device)
    native = native_dtype(device)
    if word == "bfloat16" and not _has_bfloat16(device, native):
        better = str(native).removeprefix("torch.")
        raise UserError(f"{origin} is bfloat16, which {_describe(device)} does not support; use auto (here {better})")
    return native if word == "auto" else torch.bfloat16


def native_dtype(device: torch.device) -> torch.dtype:
    """Return the narrowest dtype suitable for training that a device multiplies in hardware.

    bfloat16 from CUDA compute capability 8.0, on AMD matrix cores, on Intel GPUs and on CPUs with bf16 instructions.
    float16, which trains with a gradient scaler, from capability 7.0 (V100, T4). Otherwise float32, also on MPS, where
    bfloat16 is not faster on every chip.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        if torch.version.hip:
            return torch.bfloat16 if properties.gcnArchName.startswith(_BFLOAT16_ROCM) else torch.float16
        return native_cuda_dtype((properties.major, properties.minor))
    if device.type == "xpu":
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bfloat16() else torch.float32


def native_cuda_dtype(capability: tuple[int, int]) -> torch.dtype:
    """Return `native_dtype` of a CUDA compute capability."""
    if capability >= BFLOAT16_CAPABILITY:
        return torch.bfloat16
    return torch.float16 if capability >= FLOAT16_CAPABILITY else torch.float32


def _has_bfloat16(device: torch.device, native: torch.dtype) -> bool:
    """Return whether bfloat16 is allowed: if native on CUDA; CPUs and Apple GPUs (macOS 14) may emulate it."""
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return device.type != "cuda" or native == torch.bfloat16


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return "macOS before 14"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"


def is_free_choice(requested: str) -> bool:
    """Return whether the dtype is chosen automatically: "auto", and NANOCHAT_DTYPE is unset."""
    return requested == "auto" and not os.environ.get("NANOCHAT_DTYPE")


def default_device() -> torch.device:
    """Return the accelerator (CUDA, ROCm, MPS, XPU), else the CPU; warns if a GPU's driver is too old."""
    if (found := torch.accelerator.current_accelerator(check_available=True)) is not None:
        return found
    if "too old" in (reason := why_no_gpu()):
        warnings.warn(f"using the CPU: {reason}", stacklevel=2)
    return torch.device("cpu")


def find_device(name: str | torch.device | None) -> torch.device:
    """Return a device by name; None is `default_device()`. Raises UserError with the reason if it is not available."""
    try:
        device = default_device() if name is None else torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown; use cpu, cuda, mps or xpu, or omit it") from None
    if name is not None and device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device.type)
        count = module.device_count() if module.is_available() else 0
        if count == 0:
            reason = why_no_gpu() if device.type == "cuda" else f"PyTorch finds no {device.type} device on this machine"
            raise UserError(f"device {name} cannot be used: {reason}")
        if (device.index or 0) >= count:
            raise UserError(
                f"device {name} does not exist; this machine has {device.type}:0 to {device.type}:{count - 1}"
            )
    check_kernels(device)
    return device


def check_kernels(device: torch.device) -> None:
    """Raise UserError for a GPU that this build of torch has no kernels for (for example a V100 with CUDA 13)."""
    if device.type != "cuda" or torch.version.hip:
        return
    built = [int(name[3:].rstrip("af")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    major, minor = torch.cuda.get_device_capability(device)
    if built and 10 * major + minor < min(built):
        raise UserError(
            f"this PyTorch ({torch.__version__}) has no kernels for {_describe(device)}; "
            f"install a build for an older CUDA version"
        )


def why_no_gpu() -> str:
    """Return why torch finds no CUDA device: no driver, an outdated driver, or a build without CUDA."""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        found = re.search(r"driver on your system is too old \(found version (\d+)\)", str(error))
        if found:
            major, minor = divmod(int(found[1]) // 10, 100)
            return (
                f"the NVIDIA driver is too old for this PyTorch: it supports CUDA {major}.{minor}, PyTorch is built for CUDA "
                f"{torch.version.cuda}; update the driver, or install a PyTorch built for CUDA {major}.{minor} or older"
            )
        if torch.version.cuda is None and torch.version.hip is None:
            return "this PyTorch is built without CUDA; install a CUDA build to use a GPU"
    return "PyTorch finds no GPU on this machine"


LONGEST_PRODUCT_S = 0.3
"""Time limit of a matmul for measuring a CPU's peak, estimated from one of half the size."""


def peak_flops_per_s(device: str | torch.device, dtype: torch.dtype) -> float:
    """Return the peak FLOP/s of matmuls of a dtype on one device, the denominator of MFU; NaN if unknown.

    A GPU is looked up by name. A CPU is measured with a short matmul, once per process and dtype, because its peak
    depends on cores, threads and clock.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _measure_cpu_flops_per_s(dtype, torch.get_num_threads())
    if device.type == "cuda":
        return gpu_peak_flops_per_s(torch.cuda.get_device_name(device), dtype)
    return math.nan


def find_card(name: str) -> Card | None:
    """Return the data sheet of a GPU by its driver name; None for unknown names and MIG slices."""
    words = name.lower().replace("-", " ").split()
    if "mig" in words:  # the name of a slice does not determine its FLOP/s
        return None
    for card in (Card(*fields) for fields in _CARDS):
        if all(any(word == want or (len(want) > 3 and want in word) for word in words) for want in card.words):
            return card
    return None


def gpu_peak_flops_per_s(name: str, dtype: torch.dtype) -> float:
    """Return the data-sheet peak of a GPU by its driver name; NaN for unknown names and dtypes without tensor cores."""
    card = find_card(name)
    if card is None or dtype not in (torch.bfloat16, torch.float16):
        return math.nan
    is_emulated = dtype == torch.bfloat16 and card.capability is not None and card.capability < BFLOAT16_CAPABILITY
    return math.nan if is_emulated else card.peak_flops_per_s


def _cpu_has_bfloat16() -> bool:
    if platform.system() != "Linux":
        return False  # elsewhere torch's CPU build lacks a fast bfloat16 matmul, regardless of the processor
    if not CPUINFO.exists():
        return False
    lines = CPUINFO.read_text("utf-8", errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")  # x86, ARM
    return not _BFLOAT16_CPU.isdisjoint(flags.split())


@cache
def _measure_cpu_flops_per_s(dtype: torch.dtype, num_threads: int) -> float:  # noqa: ARG001 (num_threads is a cache key)
    """Return the best FLOP/s of a few square matmuls, in about a second; uses the largest size that is fast enough.

    A processor without instructions for a format emulates it, up to a thousand times slower.
    """
    size = 128
    while size < 2048 and 8 * _product_s(size, dtype, repeats=2) < LONGEST_PRODUCT_S:
        size *= 2
    return 2 * size**3 / _product_s(size, dtype, repeats=8)


def _product_s(size: int, dtype: torch.dtype, repeats: int) -> float:
    generator = torch.Generator().manual_seed(0)  # does not change the global random state
    left = torch.randn(size, size, generator=generator).to(dtype)
    right = torch.randn(size, size, generator=generator).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    best_s = math.inf
    with torch.no_grad():
        for _ in range(repeats):
            start_s = time.perf_counter()
            torch.mm(left, right, out=out)
            best_s = min(best_s, time.perf_counter() - start_s)
    return best_s


class ReadBandwidth:
    """Measures the memory read bandwidth of a device, the denominator of MBU, with a buffer that exceeds the caches.

    On a shared machine it varies within seconds, so alternate it with the measurement to compare.
    """

    def __init__(self, device: str | torch.device, num_bytes: int = 1 << 28) -> None:
        # random values, because untouched zero pages map to one physical page, which fits the cache
        self._values = torch.randn(num_bytes // 4, device=device)
        self.bytes_per_s()

    def bytes_per_s(self, repeats: int = 5) -> float:
        """Return the bytes per second of the fastest of several passes, with torch's threads."""
        best_s = math.inf
        for _ in range(repeats):
            start_s = time.perf_counter()
            float(self._values.amax())  # synchronizes; amax was up to twice as fast as sum
            best_s = min(best_s, time.perf_counter() - start_s)
        return self._values.nbytes / best_s


CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Return the memory available without swapping, within a container's limit (cgroup v2); UserError on Windows."""
    available = _from_meminfo(meminfo)
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    return available if limit is None else min(available, limit - (used or 0))


def free_memory_bytes(device: torch.device) -> int | None:
    """Return the memory available for tensors on a device; None if the system does not report it.

    A GPU has its own memory (cuda, xpu); cpu and mps share the machine's.
    """
    if device.type in ("cpu", "mps"):
        return available_memory_bytes() if hasattr(os, "sysconf") else None
    module = torch.get_device_module(device.type)
    free, _ = module.mem_get_info(device)  # plus memory cached by this process's allocator
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def total_memory_bytes(device: torch.device) -> int:
    """Return the memory of a GPU, or macOS's recommended maximum of shared memory."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.get_device_module(device.type).get_device_properties(device).total_memory


def _from_meminfo(meminfo: Path) -> int:
    if meminfo.exists():
        for line in meminfo.read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if not hasattr(os, "sysconf"):
        raise UserError(
            f"the free memory is unknown on {sys.platform}; set a number instead of 'auto' (--data.micro_batch_size 8)"
        )
    # Not Linux: assumes that half of the physical memory is in use.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def peak_memory_bytes(device: str | torch.device = "cpu", status: Path = Path("/proc/self/status")) -> int:
    """Return the peak memory of tensors on a GPU (CUDA, ROCm, XPU), else of the process (resident pages); 0 if unknown."""
    device = torch.device(device)
    if device.type != "cpu" and (
        measured := getattr(torch.get_device_module(device.type), "max_memory_allocated", None)
    ):
        return measured(device)
    if status.exists():  # getrusage includes the peak of the parent process before exec
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_text(num_bytes: int) -> str:
    """Format bytes, such as "1.51 GiB", or "unknown" for 0."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes else "unknown"


STEPS_PER_OCTAVE = 4
"""Number of lengths per power of two; at most a fifth of a padded length is padding."""

SMALLEST_STEP = 8


def padded_length(length: int, limit: int) -> int:
    """Round a length up to 8, 16, ... 56, 64, 80, 96, 112, 128, 160, ... or the limit: 28 lengths up to 2,048."""
    step = max(SMALLEST_STEP, (1 << (length - 1).bit_length()) // (2 * STEPS_PER_OCTAVE))
    return min(-(-length // step) * step, limit)

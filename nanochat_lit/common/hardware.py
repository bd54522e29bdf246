"""What the machine can do: devices, number formats, peak arithmetic.

Nothing here runs at import; every probe is a function call.
"""

import math
import os
import platform
import time
from functools import cache

import torch

from nanochat_lit.common.errors import UserError

COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Dense peak of matrix products with 16-bit inputs and 32-bit accumulation, FLOP/s, from the vendors' data sheets
# (without sparsity). The first entry whose words all occur in the device's name wins, so the special comes first.
_GPU_PEAK_FLOPS_PER_S: tuple[tuple[tuple[str, ...], float], ...] = (
    (("gb200",), 2.5e15),
    (("b200",), 2.25e15),
    (("h200",), 989e12),
    (("h100", "nvl"), 835e12),
    (("h100", "pcie"), 756e12),
    (("h100",), 989e12),
    (("gh200",), 989e12),
    (("h800", "pcie"), 756e12),
    (("h800",), 989e12),
    (("a100",), 312e12),
    (("a800",), 312e12),
    (("a40",), 149.7e12),
    (("a10g",), 70e12),
    (("a10",), 125e12),
    (("l40s",), 362e12),
    (("l40",), 181e12),
    (("l4",), 121e12),
    (("5090",), 209e12),
    (("4090",), 165e12),
    (("3090",), 71e12),
    (("v100",), 125e12),
    (("t4",), 65e12),
    (("mi300x",), 1307e12),
    (("mi250x",), 383e12),
)
# These have tensor cores for float16 only.
_FLOAT16_ONLY = (("v100",), ("t4",))


def resolve_compute_dtype(requested: str = "auto", device: str | torch.device | None = None) -> torch.dtype:
    """Number format of activations and matrix products.

    The environment variable NANOCHAT_DTYPE, when set, wins over `requested`. "auto" is bfloat16 where it is native (CUDA
    from compute capability 8.0, CPUs with bfloat16 instructions), else float32. float16 is never chosen by itself: it
    needs a gradient scaler, and on CPU its matrix products are a hundred times slower than float32's.

    Args:
        requested: "auto", "bfloat16", "float16" or "float32".
        device: Where the model will run; None means `default_device()`.

    Returns:
        A torch dtype.

    Raises:
        UserError: If `requested` or NANOCHAT_DTYPE is none of the four words.
    """
    override = os.environ.get("NANOCHAT_DTYPE", "")
    word, origin = (override, "environment variable NANOCHAT_DTYPE") if override else (requested, "compute_dtype")
    if word in COMPUTE_DTYPES:
        return COMPUTE_DTYPES[word]
    if word != "auto":
        raise UserError(f"{origin} {word!r} is unknown; choose one of auto, {', '.join(COMPUTE_DTYPES)}")
    device = default_device() if device is None else torch.device(device)
    return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32


def is_free_choice(requested: str) -> bool:
    """Whether the number format is left to this package: "auto", and no NANOCHAT_DTYPE in the environment."""
    return requested == "auto" and not os.environ.get("NANOCHAT_DTYPE")


def default_device() -> torch.device:
    """The fastest kind of device that is there: CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


LONGEST_PRODUCT_S = 0.3
"""What one product may take, by the time of one of half the size, when a CPU's peak is measured."""


def peak_flops_per_s(device: str | torch.device, dtype: torch.dtype) -> float:
    """Most multiply and add operations per second that a matrix product can reach; the denominator of MFU.

    Args:
        device: A GPU is looked up by name. A CPU is measured by a short matrix product, once per process and dtype: its
            peak depends on cores, threads and clock, which no table knows.
        dtype: Of the inputs of the product.

    Returns:
        FLOP/s of this one device; NaN when it is unknown, so that an MFU computed from it is NaN and not wrong.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _measure_cpu_flops_per_s(dtype, torch.get_num_threads())
    if device.type == "cuda":
        return gpu_peak_flops_per_s(torch.cuda.get_device_name(device), dtype)
    return math.nan


def gpu_peak_flops_per_s(name: str, dtype: torch.dtype) -> float:
    """Data-sheet peak of a GPU by the name its driver gives; NaN for unknown names and for dtypes wider than 16 bits."""
    if dtype not in (torch.bfloat16, torch.float16):
        return math.nan
    words = name.lower().replace("-", " ").split()
    if "mig" in words:  # a slice of a GPU, whose share the name does not state in FLOP/s
        return math.nan
    for wanted, flops_per_s in _GPU_PEAK_FLOPS_PER_S:
        if all(any(word == want or (len(want) > 3 and want in word) for word in words) for want in wanted):
            return math.nan if wanted in _FLOAT16_ONLY and dtype != torch.float16 else flops_per_s
    return math.nan


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or platform.system() != "Linux":
        return False  # elsewhere torch's CPU build has no fast bfloat16 product, whatever the processor can do
    capabilities = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16") if capabilities.get("architecture") == "x86_64" else ("bf16", "sve_bf16")
    return any(bool(capabilities.get(name, False)) for name in names)


@cache
def _measure_cpu_flops_per_s(dtype: torch.dtype, num_threads: int) -> float:  # noqa: ARG001 (num_threads is a cache key)
    """Best of a few square products, about a second in all: the largest size of which one product is quick.

    A processor without instructions for a format emulates it, up to a thousand times slower.
    """
    size = 128
    while size < 2048 and 8 * _product_s(size, dtype, repeats=2) < LONGEST_PRODUCT_S:
        size *= 2
    return 2 * size**3 / _product_s(size, dtype, repeats=8)


def _product_s(size: int, dtype: torch.dtype, repeats: int) -> float:
    """Seconds that the fastest of some products of square matrices takes."""
    generator = torch.Generator().manual_seed(0)  # leaves the caller's random state alone
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
    """How fast a device reads its memory, measured; the denominator of MBU.

    Neighbours on a shared machine change it from second to second, so read it by turns with what it is compared to.

    Args:
        device: Where.
        num_bytes: Read at once; more than the caches hold.
    """

    def __init__(self, device: str | torch.device, num_bytes: int = 1 << 28) -> None:
        # random, because fresh pages of zeros are one and the same page, which the cache holds
        self._values = torch.randn(num_bytes // 4, device=device)
        self.bytes_per_s()

    def bytes_per_s(self, repeats: int = 5) -> float:
        """Bytes per second of the fastest of some passes over the memory, by torch's threads."""
        best_s = math.inf
        for _ in range(repeats):
            start_s = time.perf_counter()
            float(self._values.amax())  # waits for the device; sums were up to twice as slow, from run to run
            best_s = min(best_s, time.perf_counter() - start_s)
        return self._values.nbytes / best_s

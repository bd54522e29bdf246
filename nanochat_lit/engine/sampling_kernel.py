"""Python's side of sample_kernel.cpp: a token for each of many rows of logits in one call, on a CPU.

Torch sorts and sums rows of a large vocabulary for as long as a small model takes to compute them.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from nanochat_lit.common.cpp_library import cpp_library
from nanochat_lit.engine.sampling_params import SamplingParams

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


@lru_cache(maxsize=1)
def sampling_library() -> ctypes.CDLL | None:
    """The compiled kernel, built on first use; None without a C++ compiler."""
    library = cpp_library(Path(__file__).with_name("sample_kernel.cpp"))
    if library is not None:
        library.sample.argtypes = [_POINTER, _INT, _INT, *[_POINTER] * 4, _INT, _POINTER]
        library.sample.restype = None
    return library


def has_sampling_kernel(logits: Tensor) -> bool:
    """Whether the kernel takes logits of this kind here."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and sampling_library() is not None


def sample_each(logits: Tensor, settings: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """Choose one token per row, by the rules of `sampling.sample_next` and, but for rounding, with its tokens.

    Args:
        logits: (B, V) float32 on a CPU.
        settings: Sampling settings of each row.
        uniforms: A number in [0, 1) for each row, of no meaning at temperature 0.
    """
    library = sampling_library()
    assert library is not None, "asked for only where there is a kernel"
    rows, size = logits.shape
    assert len(settings) == len(uniforms) == rows, "settings for each row"
    logits, doubles, tokens = logits.contiguous(), ctypes.c_double * rows, (_INT * rows)()
    temperatures, top_ps = doubles(*(one.temperature for one in settings)), doubles(*(one.top_p for one in settings))
    top_ks = (_INT * rows)(*(min(one.top_k, size) for one in settings))
    arrays = temperatures, top_ks, top_ps, doubles(*uniforms)
    library.sample(logits.data_ptr(), rows, size, *arrays, torch.get_num_threads(), tokens)
    return list(tokens)

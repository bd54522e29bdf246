"""From logits to the next token: greedy, or by temperature, top-k and top-p. Pure functions.

Randomness comes in as one uniform number per row, so that a row's token depends on nothing but its own logits and number,
on every device.

Legend: B rows, V vocabulary.
"""

import ctypes
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.cpp_library import cpp_library
from nanochat_lit.engine.sampling_params import SamplingParams

MIN_TEMPERATURE = 1e-6
"""Lower temperatures above zero are computed as this one: below it float32 has nothing left to tell apart."""


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor on a device; the host goes on while they are copied to a GPU.

    Args:
        values: Numbers, or nested lists of them.
        dtype: Of the tensor.
        device: Where it shall be.
    """
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """A tensor's values on their way to the host; the device's later work does not delay them.

    Args:
        tensor: Copied when the device's earlier work is done; it may be overwritten by later work.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=tensor.is_cuda, copy=True)  # pinned, where it does not block
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def tolist(self) -> list[Any]:
        """The values, as soon as they are here."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()


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


def sample_next(logits: Tensor, sampling: SamplingParams, uniforms: Sequence[float] = ()) -> Tensor:
    """Choose one token per row.

    Args:
        logits: (B, V).
        sampling: At temperature 0, the first of the most likely tokens is taken. top_p includes the token that passes it
            (Holtzman et al. 2019. https://arxiv.org/abs/1904.09751).
        uniforms: A number in [0, 1) per row; not needed if temperature is 0.

    Returns:
        (B,) token ids.
    """
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    if temperature == 0:
        return logits.argmax(dim=-1)
    assert len(uniforms) == len(logits), "one random number per row"
    candidates = None
    if top_k and top_k < logits.shape[-1]:
        logits, candidates = logits.topk(top_k, dim=-1)
    elif top_p < 1:
        logits, candidates = logits.sort(dim=-1, descending=True, stable=True)
    # the maximum goes first so that no division by a small temperature overflows
    logits = logits.float() - logits.amax(dim=-1, keepdim=True).float()
    # in float64, the sum over a large vocabulary leaves no token without its share; not every device has it
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    shares = torch.softmax(logits / max(temperature, MIN_TEMPERATURE), dim=-1, dtype=torch.float32).to(wide)
    cumulative = shares.cumsum(dim=-1)  # (B, candidates)
    if top_p < 1:
        # kept: every candidate before which less than top_p of the probability lies
        kept = (cumulative - shares < top_p * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
        total = cumulative.gather(-1, kept - 1)
    else:
        total = cumulative[:, -1:].contiguous()
    thresholds = to_device(uniforms, wide, logits.device)[:, None] * total
    # clamped to the last candidate that has any share: a product rounded up must not choose an impossible token
    chosen = torch.searchsorted(cumulative, thresholds, right=True)
    chosen = torch.minimum(chosen, torch.searchsorted(cumulative, total))
    return (chosen if candidates is None else candidates.gather(-1, chosen)).squeeze(-1)


def row_random(seed: int, sample: int) -> random.Random:
    """The source of randomness of one sample of a request, the same on every device and beside any neighbours.

    Args:
        seed: The request's seed.
        sample: Which of its samples; sample i of a seed is the same however many are asked for.
    """
    return random.Random(f"{seed}/{sample}")

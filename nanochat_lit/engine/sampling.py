"""Sampling of next tokens from logits: greedy, temperature, top-k and top-p. Pure functions.

Randomness is passed as one uniform number per sequence, so that a token depends only on its own logits and number, on
every device.

Shapes: B sequences, V vocabulary.
"""

import ctypes
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.compilers import cpp_library
from nanochat_lit.engine.sampling_params import SamplingParams

MIN_TEMPERATURE = 1e-6
"""Minimum positive temperature; lower ones are clamped, as they are beyond float32 precision."""


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values as a tensor on a device; the copy to a GPU is asynchronous."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """An asynchronous copy of a tensor to the host, which later device work does not delay.

    Args:
        tensor: Tensor to copy after earlier device work; later work may overwrite it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=tensor.is_cuda, copy=True)  # pinned if non-blocking
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def tolist(self) -> list[Any]:
        """Wait for the copy and return the values."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()


@lru_cache(maxsize=1)
def sampling_library() -> ctypes.CDLL | None:
    """Return the compiled kernel, built on first use; None without a C++ compiler."""
    library = cpp_library(Path(__file__).with_name("sample_kernel.cpp"))
    if library is not None:
        library.sample.argtypes = [_POINTER, _INT, _INT, *[_POINTER] * 4, _INT, _POINTER]
        library.sample.restype = None
    return library


def has_sampling_kernel(logits: Tensor) -> bool:
    """Whether the kernel takes logits of this kind here."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and sampling_library() is not None


def sample_each(logits: Tensor, settings: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """Sample one token per sequence, equivalent to `sampling.sample_next` up to rounding.

    Args:
        logits: (B, V) float32 on a CPU.
        settings: Sampling settings of each sequence.
        uniforms: A number in [0, 1) per sequence; ignored at temperature 0.
    """
    library = sampling_library()
    assert library is not None, "called without a kernel"
    rows, size = logits.shape
    assert len(settings) == len(uniforms) == rows, "one setting per sequence"
    logits, doubles, tokens = logits.contiguous(), ctypes.c_double * rows, (_INT * rows)()
    temperatures, top_ps = doubles(*(one.temperature for one in settings)), doubles(*(one.top_p for one in settings))
    top_ks = (_INT * rows)(*(min(one.top_k, size) for one in settings))
    arrays = temperatures, top_ks, top_ps, doubles(*uniforms)
    library.sample(logits.data_ptr(), rows, size, *arrays, torch.get_num_threads(), tokens)
    return list(tokens)


def sample_next(logits: Tensor, sampling: SamplingParams, uniforms: Sequence[float] = ()) -> Tensor:
    """Sample one token per sequence.

    Args:
        logits: (B, V).
        sampling: At temperature 0 sampling is greedy (the first token on a tie). top_p samples from the smallest set of
            most likely tokens whose probabilities reach this sum (Holtzman et al. 2019.
            https://arxiv.org/abs/1904.09751).
        uniforms: A number in [0, 1) per sequence; not needed at temperature 0.

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
    # subtract the maximum first, so that division by a small temperature does not overflow
    logits = logits.float() - logits.amax(dim=-1, keepdim=True).float()
    # float64 keeps small probabilities in sums over a large vocabulary; not every device supports it
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    shares = torch.softmax(logits / max(temperature, MIN_TEMPERATURE), dim=-1, dtype=torch.float32).to(wide)
    cumulative = shares.cumsum(dim=-1)  # (B, candidates)
    if top_p < 1:
        # keep candidates whose preceding cumulative probability is less than top_p
        kept = (cumulative - shares < top_p * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
        total = cumulative.gather(-1, kept - 1)
    else:
        total = cumulative[:, -1:].contiguous()
    thresholds = to_device(uniforms, wide, logits.device)[:, None] * total
    # clamp to the last candidate with nonzero probability, in case rounding exceeds the total
    chosen = torch.searchsorted(cumulative, thresholds, right=True)
    chosen = torch.minimum(chosen, torch.searchsorted(cumulative, total))
    return (chosen if candidates is None else candidates.gather(-1, chosen)).squeeze(-1)


def sample_rows(requests: Sequence[SamplingParams], randoms: Sequence[random.Random], logits: Tensor) -> Tensor:
    """Sample a token per request from logits (B, V), (B,) on the device.

    Without the kernel, requests with equal settings are batched.
    """
    if has_sampling_kernel(logits):
        uniforms = [draw.random() if r.temperature else 0.0 for r, draw in zip(requests, randoms, strict=True)]
        return torch.tensor(sample_each(logits, requests, uniforms))
    groups: dict[tuple[float, int, float], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault((request.temperature, request.top_k, request.top_p), []).append(index)
    tokens = torch.empty(len(requests), dtype=torch.int64, device=logits.device)
    for members in groups.values():
        sampling, uniforms = requests[members[0]], [randoms[i].random() for i in members]
        if len(groups) == 1:
            return sample_next(logits, sampling, uniforms)
        places = to_device(members, torch.int64, logits.device)
        tokens[places] = sample_next(logits[places], sampling, uniforms)
    return tokens


def row_random(seed: int, sample: int) -> random.Random:
    """Return the random generator of one sample, independent of the device and of other requests."""
    return random.Random(f"{seed}/{sample}")

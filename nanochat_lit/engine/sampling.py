"""Sampling of next tokens from logits: greedy, temperature, top-k and top-p; and a request's changes of its logits before.

Randomness is passed as one uniform number per sequence, so that a token depends only on its own logits and number, on
every device.

Shapes: B sequences, V vocabulary.
"""

import ctypes
import math
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.compilers import cpp_library
from nanochat_lit.engine.sampling_params import Request, SamplingParams


def has_rules(request: Request) -> bool:
    """Return whether a request changes its logits; most do not, and cost nothing then."""
    has_min_p = request.min_p > 0 and request.temperature > 0  # greedy sampling takes the maximum anyway
    return bool(has_min_p or request.logit_bias or request.grammar or _has_penalties(request))


class LogitRules:
    """The rules of one request, and what they need to know of its tokens.

    Order: grammar, bias, repetition penalty (Keskar et al. 2019. https://arxiv.org/abs/1909.05858), presence and frequency penalties
    as in OpenAI's API, min_p (Nguyen et al. 2024. https://arxiv.org/abs/2407.01082). The repetition penalty applies to
    the tokens of the prompt, too. `parser` is llguidance's for the request's grammar.
    """

    def __init__(self, request: Request, vocab_size: int, device: torch.device, parser: Any = None) -> None:
        self._request, self._parser = request, parser
        ids, amounts = [token for token, _ in request.logit_bias], [amount for _, amount in request.logit_bias]
        self._bias_ids = torch.tensor(ids, dtype=torch.int64, device=device)
        self._bias = torch.tensor(amounts, dtype=torch.float32, device=device)
        self._counts = torch.zeros(vocab_size if _has_penalties(request) else 0, device=device)
        self._in_prompt = torch.zeros_like(self._counts, dtype=torch.bool)
        if len(self._in_prompt) and request.repetition_penalty != 1:
            self._in_prompt[torch.tensor(list(set(request.prompt_ids)), device=device)] = True

    @property
    def has_memory(self) -> bool:
        """Whether the next token's logits depend on the answer so far, so that every token must reach `take` first."""
        return self._parser is not None or len(self._counts) > 0

    @property
    def has_failed(self) -> bool:
        """Whether no token can follow, because the grammar exceeded a limit of the parser."""
        return self._parser is not None and self._parser.is_error()

    def apply(self, logits: Tensor) -> Tensor:
        """Return changed logits, (V,) float32, of logits (V,)."""
        params, changed = self._request, logits.float()
        if self._parser is not None:
            allowed = torch.zeros(len(logits), dtype=torch.bool)  # the model's vocabulary may be padded
            found = torch.frombuffer(bytearray(self._parser.compute_logit_bias()), dtype=torch.uint8)
            allowed[: len(found)] = found > 0
            changed = changed.masked_fill(~allowed.to(changed.device), -torch.inf)
        if len(self._bias_ids):
            changed = changed.index_add(0, self._bias_ids, self._bias)
        if len(self._counts):
            seen, factor = (self._counts > 0) | self._in_prompt, params.repetition_penalty
            changed = torch.where(seen, torch.where(changed > 0, changed / factor, changed * factor), changed)
            changed = changed - params.presence_penalty * (self._counts > 0) - params.frequency_penalty * self._counts
        if params.min_p and params.temperature:
            lowest = changed.max() + params.temperature * math.log(params.min_p)
            changed = changed.masked_fill(changed < lowest, -torch.inf)
        return changed

    def take(self, token_id: int) -> None:
        """Continue with a token that the model has sampled; those of a tool do not count."""
        if len(self._counts):
            self._counts[token_id] += 1
        if self._parser is not None:
            self._parser.consume_token(token_id)


def _has_penalties(request: Request) -> bool:
    return request.repetition_penalty != 1 or request.presence_penalty != 0 or request.frequency_penalty != 0


MIN_TEMPERATURE = 1e-6
"""Minimum positive temperature; lower ones are clamped, as they are beyond float32 precision."""


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values as a tensor on a device; the copy to a GPU is asynchronous."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """An asynchronous copy of a tensor to the host, which later device work does not delay.

    Later work may overwrite the tensor.
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
    """Sample one token per sequence of (B, V) float32 logits on a CPU, equivalent to `sample_next` up to rounding.

    `uniforms` has a number in [0, 1) per sequence; ignored at temperature 0.
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

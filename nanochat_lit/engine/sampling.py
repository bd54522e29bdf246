"""From logits to the next token: greedy, or by temperature, top-k and top-p. Pure functions.

Randomness comes in as one uniform number per row, so that a row's token depends on nothing but its own logits and number,
on every device.

Legend: B rows, V vocabulary.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.engine.host_copy import to_device
from nanochat_lit.engine.sampling_params import SamplingParams

MIN_TEMPERATURE = 1e-6
"""Lower temperatures above zero are computed as this one: below it float32 has nothing left to tell apart."""


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

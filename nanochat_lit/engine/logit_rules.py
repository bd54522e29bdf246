"""Changes of a request's logits before sampling: bias, penalties on repetition, and min_p.

Shapes: V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.engine.sampling_params import SamplingParams


def has_rules(params: SamplingParams) -> bool:
    """Return whether a request changes its logits; most do not, and cost nothing then."""
    has_min_p = params.min_p > 0 and params.temperature > 0  # greedy sampling takes the maximum anyway
    return bool(has_min_p or params.logit_bias or _has_penalties(params))


class LogitRules:
    """The rules of one request, and the counts of its tokens that they need.

    Order: bias, repetition penalty (Keskar et al. 2019. https://arxiv.org/abs/1909.05858), presence and frequency penalties
    as in OpenAI's API, min_p (Nguyen et al. 2024. https://arxiv.org/abs/2407.01082).

    Args:
        params: The request's settings.
        prompt_ids: Its prompt; the repetition penalty applies to these tokens, too.
        vocab_size: Number of logits.
        device: Device of the logits.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, device: torch.device
    ) -> None:
        self._params = params
        ids, amounts = [token for token, _ in params.logit_bias], [amount for _, amount in params.logit_bias]
        self._bias_ids = torch.tensor(ids, dtype=torch.int64, device=device)
        self._bias = torch.tensor(amounts, dtype=torch.float32, device=device)
        self._counts = torch.zeros(vocab_size if _has_penalties(params) else 0, device=device)
        self._in_prompt = torch.zeros_like(self._counts, dtype=torch.bool)
        if len(self._in_prompt) and params.repetition_penalty != 1:
            self._in_prompt[torch.tensor(list(set(prompt_ids)), device=device)] = True

    def apply(self, logits: Tensor) -> Tensor:
        """Return changed logits, (V,) float32, of logits (V,)."""
        params, changed = self._params, logits.float()
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

    def count(self, token: Tensor, times: int = 1) -> None:
        """Count a sampled token, (1,) on the device; -1 times takes back one that a tool has replaced."""
        if len(self._counts):
            self._counts.index_add_(0, token, torch.full((1,), float(times), device=self._counts.device))


def _has_penalties(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

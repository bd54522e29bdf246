"""Changes of a request's logits before sampling: grammar, bias, penalties on repetition, and min_p.

Shapes: V vocabulary.
"""

import math

import torch
from torch import Tensor

from nanochat_lit.engine.grammar import GrammarParser
from nanochat_lit.engine.sampling_params import Request


def has_rules(request: Request) -> bool:
    """Return whether a request changes its logits; most do not, and cost nothing then."""
    has_min_p = request.min_p > 0 and request.temperature > 0  # greedy sampling takes the maximum anyway
    return bool(has_min_p or request.logit_bias or request.grammar or _has_penalties(request))


class LogitRules:
    """The rules of one request, and what they need to know of its tokens.

    Order: grammar, bias, repetition penalty (Keskar et al. 2019. https://arxiv.org/abs/1909.05858), presence and frequency penalties
    as in OpenAI's API, min_p (Nguyen et al. 2024. https://arxiv.org/abs/2407.01082).

    Args:
        request: The request; the repetition penalty applies to the tokens of its prompt, too.
        vocab_size: Number of logits.
        device: Device of the logits.
        parser: Parser of its grammar, if it has one.
    """

    def __init__(
        self, request: Request, vocab_size: int, device: torch.device, parser: GrammarParser | None = None
    ) -> None:
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
        """Whether no token can follow."""
        return self._parser is not None and self._parser.has_failed

    def apply(self, logits: Tensor) -> Tensor:
        """Return changed logits, (V,) float32, of logits (V,)."""
        params, changed = self._request, logits.float()
        if self._parser is not None:
            allowed = torch.zeros(len(logits), dtype=torch.bool)  # the model's vocabulary may be padded
            found = torch.frombuffer(self._parser.allowed(), dtype=torch.uint8)
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
            self._parser.take(token_id)


def _has_penalties(request: Request) -> bool:
    return request.repetition_penalty != 1 or request.presence_penalty != 0 or request.frequency_penalty != 0

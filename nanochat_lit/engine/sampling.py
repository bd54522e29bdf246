"""From logits to the next token: greedy, or by temperature and top-k. Pure functions.

Legend: B rows, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError

MIN_TEMPERATURE = 1e-6
"""Lower temperatures above zero are computed as this one: below it float32 has nothing left to tell apart."""


def check_sampling(temperature: float, top_k: int | None) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UserError: If the temperature is negative or not finite, or top_k is negative.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature is {temperature}; use 0 (the likeliest token) or a positive number such as 0.6")
    if top_k is not None and top_k < 0:
        raise UserError(f"top_k is {top_k}; use 0 (off) or the number of likeliest tokens to choose from")


def sample_next(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Choose one token per row.

    Args:
        logits: (B, V).
        temperature: 0 takes the likeliest token (the first one on a tie); higher is more varied.
        top_k: Choose among this many likeliest tokens; None or 0 is all of them, as is more than V.
        generator: Source of randomness on the device of the logits: one for all rows, or one per row, which makes a row's
            tokens independent of its neighbours; None is torch's global one.

    Returns:
        (B,) token ids.

    Raises:
        UserError: If temperature or top_k is impossible.
    """
    check_sampling(temperature, top_k)
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k:
        logits, candidates = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    else:
        candidates = None
    # the maximum goes first so that no division by a small temperature overflows
    logits = logits.float() - logits.amax(dim=-1, keepdim=True).float()
    probabilities = torch.softmax(logits / max(temperature, MIN_TEMPERATURE), dim=-1)
    if generator is None or isinstance(generator, torch.Generator):
        chosen = torch.multinomial(probabilities, 1, generator=generator)
    else:
        assert len(generator) == len(probabilities), "one generator per row"
        rows = zip(probabilities, generator, strict=True)
        chosen = torch.stack([torch.multinomial(row, 1, generator=own) for row, own in rows])
    return (chosen if candidates is None else candidates.gather(-1, chosen)).squeeze(-1)


def row_generators(seed: int, num_rows: int, device: torch.device | str) -> list[torch.Generator]:
    """One source of randomness per row, so that a row draws the same numbers whatever else is in the batch.

    Args:
        seed: The request's seed.
        num_rows: Rows; row i of a seed is the same for every num_rows above i.
        device: Where the logits live.
    """
    # the multiplier keeps row 1 of seed 0 apart from row 0 of seed 1
    seeds = [(seed * 1_000_003 + row) % 2**63 for row in range(num_rows)]
    return [torch.Generator(device=device).manual_seed(own) for own in seeds]

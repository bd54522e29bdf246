"""Rollouts for reinforcement learning: several samples per prompt, with a mask of sampled tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.sampling_params import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled completion."""

    token_ids: list[int]
    """Completion without the prompt, including the end token."""
    mask: list[int]
    """Mask of equal length: 1 if the model sampled the token, 0 if a tool forced it."""
    has_ended: bool
    """Whether the model ended it, rather than a limit."""

    @property
    def num_sampled(self) -> int:
        """Number of tokens sampled by the model."""
        return sum(self.mask)


def roll_out(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    num_samples: int = 1,
    **sampling: Any,
) -> list[list[Rollout]]:
    """Sample completions of every prompt, with the calculator tool.

    A prompt's samples depend only on its seed, not on other prompts.

    Args:
        engine: Model and tokenizer.
        prompts: Token ids of any lengths.
        seeds: One seed per prompt.
        num_samples: Completions per prompt.
        sampling: Settings of `SamplingParams`; the defaults are temperature 1 and max_new_tokens 64.

    Returns:
        `num_samples` rollouts per prompt, in the order of the prompts.

    Raises:
        UserError: As `Engine.stream`, or if the numbers of seeds and prompts differ.
    """
    if len(seeds) != len(prompts):
        raise UserError(f"{len(prompts)} prompts need {len(prompts)} seeds, not {len(seeds)}")
    sampling = {"temperature": 1.0, "max_new_tokens": 64, **sampling}
    requests = [Request(prompt_ids=prompt, seed=seed, **sampling) for prompt, seed in zip(prompts, seeds, strict=True)]
    rollouts = [
        Rollout(
            token_ids=[token.token_id for token in tokens],
            mask=[1 - token.is_forced for token in tokens],
            has_ended=tokens[-1].token_id in engine.end_ids,
        )
        for tokens in engine.run(requests, num_samples)
    ]
    return [rollouts[start : start + num_samples] for start in range(0, len(rollouts), num_samples)]

"""Many samples of many prompts, with every token and who chose it: what reinforcement learning needs."""

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
    """Without the prompt, with the token that ended it."""
    mask: list[int]
    """As long: 1 where the model sampled the token, 0 where a tool forced it."""
    has_ended: bool
    """Whether the model ended it, and not the limit or the context."""

    @property
    def num_sampled(self) -> int:
        """Tokens that the model chose."""
        return sum(self.mask)


def roll_out(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    num_samples: int = 1,
    **sampling: Any,
) -> list[list[Rollout]]:
    """Sample completions of every prompt, with the calculator available.

    A prompt's samples depend on its own seed alone, not on the other prompts.

    Args:
        engine: Model and tokenizer.
        prompts: Token ids, of any lengths.
        seeds: One for each prompt.
        num_samples: Completions of each prompt.
        sampling: Settings of `SamplingParams`; unless given, the temperature is 1 and max_new_tokens 64.

    Returns:
        `num_samples` rollouts for each prompt, in the order of the prompts.

    Raises:
        UserError: As `Engine.stream`, or if there are not as many seeds as prompts.
    """
    if len(seeds) != len(prompts):
        raise UserError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
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

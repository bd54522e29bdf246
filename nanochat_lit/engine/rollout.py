"""Many samples of many prompts, with every token and who chose it: what reinforcement learning needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine


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
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> list[list[Rollout]]:
    """Sample completions of every prompt, with the calculator at hand.

    A prompt's samples depend on its own seed alone, not on the other prompts.

    Args:
        engine: Model and tokenizer.
        prompts: Token ids, of any lengths.
        seeds: One for each prompt.
        num_samples: Completions of each prompt.
        max_new_tokens: Longest completion in tokens, tool results included.
        temperature: 0 is greedy.
        top_k: Sample among this many likeliest tokens; None or 0 is all.

    Returns:
        `num_samples` rollouts for each prompt, in the order of the prompts.

    Raises:
        UserError: As `Engine.stream`, or if there are not as many seeds as prompts.
    """
    if len(seeds) != len(prompts):
        raise UserError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
    return [
        _samples(engine, prompt, seed, num_samples, max_new_tokens, temperature, top_k)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _samples(
    engine: Engine,
    prompt: Sequence[int],
    seed: int,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
) -> list[Rollout]:
    token_ids: list[list[int]] = [[] for _ in range(num_samples)]
    masks: list[list[int]] = [[] for _ in range(num_samples)]
    running = set(range(num_samples))
    for tokens, mask in engine.stream(prompt, num_samples, max_new_tokens, temperature, top_k, seed):
        for row in list(running):
            token_ids[row].append(tokens[row])
            masks[row].append(mask[row])
            if tokens[row] in engine.end_ids:
                running.discard(row)
    return [
        Rollout(token_ids=token_ids[row], mask=masks[row], has_ended=row not in running) for row in range(num_samples)
    ]

"""Rollouts for reinforcement learning: several samples per prompt, with calls of tools and a mask of sampled tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.functions import Functions
from nanochat_lit.engine.sampling_params import Request
from nanochat_lit.tokenizer import Tokenizer, parse_completion
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END, ASSISTANT_START


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled completion."""

    token_ids: list[int]
    """Completion without the prompt, including the end token; with functions, several turns."""
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
    functions: Sequence[Functions | None] | None = None,
    starts: Sequence[Sequence[int]] | None = None,
    **sampling: Any,
) -> list[list[Rollout]]:
    """Sample completions of every prompt, with the calculator tool and, if given, functions.

    A prompt's samples depend only on its seed, not on other prompts. The turns with the results of `functions`, which
    each prompt offers, are part of the completion. `starts` are tokens that each prompt's completions begin with; the
    model does not sample them. `sampling` has settings of `SamplingParams`; the defaults are temperature 1 and
    max_new_tokens 64.

    Returns:
        `num_samples` rollouts per prompt, in the order of the prompts.

    Raises:
        UserError: As `Engine.complete`, or if the numbers of seeds and prompts differ.
    """
    if len(seeds) != len(prompts):
        raise UserError(f"{len(prompts)} prompts need {len(prompts)} seeds, not {len(seeds)}")
    sampling = {"temperature": 1.0, "max_new_tokens": 64, **sampling}
    functions, starts = functions or [None] * len(prompts), starts or [()] * len(prompts)
    requests = [
        Request(prompt_ids=prompt, seed=seed, functions=offered or None, start_ids=start, **sampling)
        for prompt, seed, offered, start in zip(prompts, seeds, functions, starts, strict=True)
    ]
    rollouts = [
        Rollout(
            token_ids=[token.token_id for token in tokens],
            mask=[1 - token.is_forced for token in tokens],
            has_ended=tokens[-1].token_id in engine.end_ids and tokens[-1].finish_reason == "stop",
        )
        for tokens in engine.run(requests, num_samples)
    ]
    return [rollouts[start : start + num_samples] for start in range(0, len(rollouts), num_samples)]


def messages_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the messages of a completion: the assistant's, and between them the user's with results of functions."""
    special, rest = tokenizer.special_ids, list(token_ids)
    messages: list[dict[str, Any]] = []
    while special[ASSISTANT_END] in rest[:-1]:  # the limit of tokens may cut what follows
        end = rest.index(special[ASSISTANT_END])
        start = rest.index(special[ASSISTANT_START], end) if special[ASSISTANT_START] in rest[end:] else len(rest)
        messages.append({"role": "assistant", "content": parse_completion(tokenizer, rest[:end])})
        results = [token_id for token_id in rest[end:start] if token_id not in special.values()]
        messages.append({"role": "user", "content": tokenizer.decode(results)})
        rest = rest[start + 1 :]
    return [*messages, {"role": "assistant", "content": parse_completion(tokenizer, rest)}]

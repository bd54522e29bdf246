"""Generation: prefill the prompt once, then one cached decode step per token, with tool calls answered on the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling import check_sampling, row_generators, sample_next
from nanochat_lit.engine.tool_use import ToolRow
from nanochat_lit.model import GPT, KVCache
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END

MAX_BATCH_ROWS = 128
"""Most prompts decoded together by `generate_batch`; bounds the KV cache."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """How to choose tokens, and how many."""

    max_new_tokens: int
    temperature: float
    top_k: int | None


class Engine:
    """Generates completions of token prompts with a model and its tokenizer.

    A row ends with <|assistant_end|> or <|bos|>, after max_new_tokens tokens (those that a tool forced count too), or when
    the context is full: every token that the model reads has one of its sequence_len positions, so a prompt of P tokens
    leaves room for sequence_len - P + 1 new ones. No token's past is ever computed twice.

    Each row draws from its own generator, seeded by the request's seed and the row's index: sample 0 is the same whether 1
    or 16 samples are asked for.

    Args:
        model: Used as it is: on its device, in its compute dtype.
        tokenizer: The one it was trained with.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end_ids = frozenset((tokenizer.special_ids[ASSISTANT_END], tokenizer.bos_id))

    def generate(
        self,
        prompt_ids: Sequence[int],
        num_samples: int = 1,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[list[int]]:
        """Completions of one prompt.

        Args:
            prompt_ids: The prompt; it is read once, whatever the number of samples.
            num_samples: Completions.
            max_new_tokens: Longest completion in tokens, tool results included.
            temperature: 0 is greedy.
            top_k: Sample among this many likeliest tokens; None or 0 is all.
            seed: The same seed gives the same completions.

        Returns:
            Token ids per sample, without the prompt and without the token that ended it.

        Raises:
            UserError: If the prompt is empty, foreign or longer than the context, or a setting is impossible.
        """
        steps = self.stream(prompt_ids, num_samples, max_new_tokens, temperature, top_k, seed)
        return self._collect(steps, num_samples)

    def stream(
        self,
        prompt_ids: Sequence[int],
        num_samples: int = 1,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """The same step by step, as soon as each token is known.

        Args:
            prompt_ids: The prompt.
            num_samples: Completions.
            max_new_tokens: Most steps.
            temperature: 0 is greedy.
            top_k: Sample among this many likeliest tokens; None or 0 is all.
            seed: The same seed gives the same tokens.

        Returns:
            An iterator of (token per sample, mask per sample): mask 1 where the model sampled the token, 0 where a tool
            forced it. The token that ends a row is in it with mask 1; the row repeats it with mask 0 while others go on.

        Raises:
            UserError: As `generate`, when called, not at the first step.
        """
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}; ask for at least 1")
        settings = self._check([prompt_ids], max_new_tokens, temperature, top_k)
        generators = row_generators(seed, num_samples, self.model.device)
        return self._steps([prompt_ids], num_samples, settings, generators)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[list[int]]:
        """One completion for each of many prompts; greedy ones equal those made one by one.

        Prompts of the same length are prefilled and decoded together, so no padding ever takes part.

        Args:
            prompts: Prompts of any lengths.
            max_new_tokens: Longest completion in tokens, tool results included.
            temperature: 0 is greedy.
            top_k: Sample among this many likeliest tokens; None or 0 is all.
            seed: Prompt i draws the numbers of row i of this seed, however the prompts are grouped.

        Returns:
            Token ids per prompt, in the order of the prompts.

        Raises:
            UserError: As `generate`.
        """
        settings = self._check(prompts, max_new_tokens, temperature, top_k)
        generators = row_generators(seed, len(prompts), self.model.device)
        completions: list[list[int]] = [[] for _ in prompts]
        for members in _groups_of_equal_length(prompts):
            group = [prompts[i] for i in members]
            steps = self._steps(group, 1, settings, [generators[i] for i in members])
            for i, completion in zip(members, self._collect(steps, len(members)), strict=True):
                completions[i] = completion
        return completions

    def _check(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, top_k: int | None
    ) -> _Settings:
        check_sampling(temperature, top_k)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
        context, vocab_size = self.model.config.sequence_len, self.model.config.vocab_size
        for prompt in prompts:
            if not prompt:
                raise UserError("the prompt is empty; begin it with the tokenizer's bos_id")
            if len(prompt) > context:
                raise UserError(
                    f"the prompt has {len(prompt)} tokens and the model's context is {context}; shorten the prompt"
                )
            if min(prompt) < 0 or max(prompt) >= vocab_size:
                raise UserError(
                    f"the prompt's token ids run from {min(prompt)} to {max(prompt)}, the model's from 0 to "
                    f"{vocab_size - 1}; encode it with the model's own tokenizer"
                )
        return _Settings(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k)

    def _steps(
        self,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        settings: _Settings,
        generators: Sequence[torch.Generator],
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Decode prompts of one length; several samples only for a single prompt."""
        num_steps = min(settings.max_new_tokens, self.model.config.sequence_len - len(prompts[0]) + 1)
        logits, cache = self._prefill(prompts, num_samples, num_steps)
        rows = [ToolRow(self.tokenizer) for _ in generators]
        tokens = [0] * len(rows)
        active = list(range(len(rows)))  # the row of each line of the cache
        for step in range(num_steps):
            own = [generators[row] for row in active]
            # the mode must not stay on while the caller holds the iterator, so it ends before the yield
            with torch.inference_mode():
                sampled = sample_next(logits, settings.temperature, settings.top_k, own).tolist()
            masks = [0] * len(rows)
            for row, choice in zip(active, sampled, strict=True):
                forced = rows[row].next_forced()
                tokens[row], masks[row] = (choice, 1) if forced is None else (forced, 0)
                rows[row].observe(tokens[row])
            yield list(tokens), masks
            lines = [line for line, row in enumerate(active) if not rows[row].has_ended]
            if not lines or step == num_steps - 1:
                return
            if len(lines) < len(active):
                active = [active[line] for line in lines]
                cache.keep_rows(torch.tensor(lines, device=self.model.device))
            logits = self._forward([[tokens[row]] for row in active], cache)

    def _prefill(self, prompts: Sequence[Sequence[int]], num_samples: int, num_steps: int) -> tuple[Tensor, KVCache]:
        """Logits after the prompt, (rows, V), and the cache to go on with; a single prompt is read once for all samples."""
        length = len(prompts[0])
        room = length + num_steps - 1  # the last token is never fed
        prompt_room = length if num_samples > 1 else room
        cache = KVCache(self.model.config, len(prompts), prompt_room, self.model.device, self.model.compute_dtype)
        logits = self._forward(prompts, cache)
        if num_samples > 1:
            with torch.inference_mode():
                cache = cache.expand(num_samples, room)
                logits = logits.expand(num_samples, -1)
        return logits, cache

    def _forward(self, token_ids: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
        """Logits (B, V) after the last of the new tokens, which the cache takes in."""
        with torch.inference_mode():
            inputs = torch.tensor(token_ids, dtype=torch.int64, device=self.model.device)
            return self.model(inputs, kv_cache=cache, last_only=True)[:, -1]

    def _collect(self, steps: Iterator[tuple[list[int], list[int]]], num_rows: int) -> list[list[int]]:
        completions: list[list[int]] = [[] for _ in range(num_rows)]
        running = set(range(num_rows))
        for tokens, _ in steps:
            for row in sorted(running):
                if tokens[row] in self.end_ids:
                    running.discard(row)
                else:
                    completions[row].append(tokens[row])
        return completions


def _groups_of_equal_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the prompts, grouped by length, at most MAX_BATCH_ROWS to a group."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    return [
        members[start : start + MAX_BATCH_ROWS]
        for _, members in sorted(by_length.items())
        for start in range(0, len(members), MAX_BATCH_ROWS)
    ]

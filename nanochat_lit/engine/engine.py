"""Generation: whole completions, or token by token, of one prompt or of many."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.sampling_params import FAILED, NOT_FINITE, Request
from nanochat_lit.engine.slots import Emitted, SlotEngine
from nanochat_lit.engine.tool_use import Tool
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer


@dataclass(slots=True)
class _Inbox:
    """Tokens of the slots that one call of `stream` watches."""

    slots: list[int]
    waiting: dict[int, deque[Emitted]] = field(default_factory=dict)


class Engine(SlotEngine):
    """Generates completions of token prompts with a model and its tokenizer.

    A request ends with <|assistant_end|> or <|bos|>, at a stop string, after max_new_tokens tokens (those that a tool forced
    count too), or when the context is full: every token that the model reads has one of its sequence_len positions, so a
    prompt of P tokens leaves room for sequence_len - P + 1 new ones. No token's past is ever computed twice, and no
    request's tokens depend on the others'.

    Use `generate`, `stream`, `generate_batch` and `complete`; or, to serve requests that come and go, `admit`, `step` and
    `release` (engine/scheduler.py does). One thread at a time.

    Args:
        model: Used as it is: on its device, in its compute dtype, packed or not.
        tokenizer: The one it was trained with.
        num_slots: Requests that are decoded together at most; each holds a KV cache of the whole context.
        prefill_chunk: Tokens of a prompt read between two decode steps; fewer let neighbours wait less.
        tool: Answers the model's calls, or has no answer: the calculator, or `python_tool.run_tool`. All rows wait for it.

    Raises:
        UserError: If num_slots or prefill_chunk is below 1, or (with the first request) if the slots' keys and values do not
            fit into the free memory.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        num_slots: int = 32,
        prefill_chunk: int = 256,
        *,
        tool: Tool = calculate,
    ) -> None:
        super().__init__(model, tokenizer, num_slots, prefill_chunk, tool=tool)
        self._inboxes: list[_Inbox] = []

    def generate(self, prompt_ids: Sequence[int], num_samples: int = 1, **sampling: Any) -> list[list[int]]:
        """Completions of one prompt.

        Args:
            prompt_ids: The prompt; it is read once for every num_slots samples.
            num_samples: Completions.
            sampling: Settings of `SamplingParams`; max_new_tokens is 64 unless given. Sample 0 is the same whether 1 or 16
                are asked for.

        Returns:
            Token ids per sample, without the prompt and without the token that ended it.

        Raises:
            UserError: If the prompt is empty, foreign or longer than the context, or a setting is impossible.
        """
        request = _request(prompt_ids, sampling)
        return self.complete([request], num_samples)

    def generate_batch(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        """One completion for each of many prompts, the same as made one by one; more prompts than slots take turns.

        Args:
            prompts: Prompts of any lengths.
            sampling: As in `generate`. Prompt i draws the numbers of sample i of the seed.

        Returns:
            Token ids per prompt, in the order of the prompts.

        Raises:
            UserError: As `generate`.
        """
        request = _request((), sampling)
        return self.complete([replace(request, prompt_ids=prompt, sample=i) for i, prompt in enumerate(prompts)])

    def complete(self, requests: Sequence[Request], num_samples: int = 1) -> list[list[int]]:
        """Completions of many requests, each of them several times if wished.

        Args:
            requests: What to complete.
            num_samples: Completions of each; sample i of a request draws the numbers of its `sample` + i.

        Returns:
            Token ids without the token that ended them: all samples of the first request, then those of the second...

        Raises:
            UserError: If a request cannot be served; nothing is generated then.
        """
        return [
            [token.token_id for token in tokens if token.token_id not in self.end_ids]
            for tokens in self.run(requests, num_samples)
        ]

    def run(self, requests: Sequence[Request], num_samples: int = 1) -> list[list[Emitted]]:
        """The same as `complete` with all that is known of each token, the ending one included; more rows than slots take turns."""
        _check_samples(num_samples)
        for request in requests:
            self.check(request)
        completions: list[list[Emitted]] = [[] for _ in range(len(requests) * num_samples)]
        waiting = deque((index, first) for index in range(len(requests)) for first in range(num_samples))
        inbox = _Inbox(slots=[])
        self._inboxes.append(inbox)
        owners: dict[int, int] = {}
        try:
            while waiting or inbox.slots:
                while waiting and self._free:
                    # samples of one request that find room together share the reading of its prompt
                    index, first = waiting.popleft()
                    count = 1
                    while waiting and waiting[0][0] == index and count < len(self._free):
                        waiting.popleft()
                        count += 1
                    request = replace(requests[index], sample=requests[index].sample + first)
                    slots = self._admit(request, count)
                    self._watch(inbox, slots)
                    owners.update({slot: index * num_samples + first + i for i, slot in enumerate(slots)})
                for token in self._next_tokens(inbox):
                    completions[owners[token.slot]].append(token)
        finally:
            self._close(inbox)
        return completions

    def stream(
        self, prompt_ids: Sequence[int], num_samples: int = 1, **sampling: Any
    ) -> Iterator[tuple[list[int], list[int]]]:
        """The same as `generate`, step by step, as soon as each token is known.

        Args:
            prompt_ids: The prompt.
            num_samples: Completions, at most num_slots.
            sampling: As in `generate`.

        Returns:
            An iterator of (token per sample, mask per sample): mask 1 where the model chose the token, 0 where a tool
            forced it. The token that ends a row is in it with mask 1; the row repeats it with mask 0 while others go on.

        Raises:
            UserError: As `generate`, when called, not at the first step.
        """
        _check_samples(num_samples)
        request = _request(prompt_ids, sampling)
        self.check(request)
        if num_samples > self.num_free:
            raise UserError(f"{num_samples} samples need as many slots, {self.num_free} are free; raise num_slots")
        return self._lockstep(request, num_samples)

    def _lockstep(self, request: Request, num_samples: int) -> Iterator[tuple[list[int], list[int]]]:
        inbox = _Inbox(slots=[])
        self._inboxes.append(inbox)
        try:
            slots = self._admit(request, num_samples)
            self._watch(inbox, slots)
            tokens = [0] * num_samples
            while inbox.slots:
                masks = [0] * num_samples
                for token in self._next_tokens(inbox):
                    sample = slots.index(token.slot)
                    tokens[sample], masks[sample] = token.token_id, 1 - token.is_forced
                yield list(tokens), masks
        finally:
            self._close(inbox)

    def _watch(self, inbox: _Inbox, slots: Sequence[int]) -> None:
        inbox.slots.extend(slots)
        inbox.waiting.update({slot: deque() for slot in slots})

    def _next_tokens(self, inbox: _Inbox) -> list[Emitted]:
        """The next token of each watched slot that has one; runs the engine until there is any."""
        while not any(inbox.waiting.values()):
            for token in self.step():
                for other in self._inboxes:
                    if token.slot in other.waiting:
                        other.waiting[token.slot].append(token)
        tokens = [inbox.waiting[slot].popleft() for slot in inbox.slots if inbox.waiting[slot]]
        for token in tokens:
            if token.finish_reason == FAILED:
                raise UserError(NOT_FINITE)
            if token.finish_reason:
                inbox.slots.remove(token.slot)
                del inbox.waiting[token.slot]
        return tokens

    def _close(self, inbox: _Inbox) -> None:
        for slot in inbox.slots:
            self.release(slot)
        self._inboxes.remove(inbox)


def _request(prompt_ids: Sequence[int], sampling: dict[str, Any]) -> Request:
    return Request(prompt_ids=prompt_ids, **{"max_new_tokens": 64, **sampling})


def _check_samples(num_samples: int) -> None:
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; ask for at least 1")

"""Generation of complete or streamed completions for one or more prompts."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import FAILED, Request
from nanochat_lit.engine.slots import Emitted, SlotEngine


@dataclass(slots=True)
class _Inbox:
    """Tokens of the slots of one `stream` call."""

    slots: list[int]
    waiting: dict[int, deque[Emitted]] = field(default_factory=dict)


class Engine(SlotEngine):
    """Generates completions of token prompts with a model and its tokenizer.

    A request ends with <|assistant_end|> or <|bos|>, at a stop string, after max_new_tokens tokens (including tool
    results), or when the context is full. Every token that the model reads takes one of its sequence_len positions, so
    a prompt of P tokens leaves space for sequence_len - P + 1 new ones. Tokens are computed once, and requests do not
    affect each other.

    Use `generate`, `stream`, `generate_batch` and `complete`; or, to serve requests continuously, `admit`, `step` and
    `release` (as in engine/scheduler.py). Not thread-safe.

    Args:
        model: Model on its device, in its compute dtype, packed or not.
        tokenizer: Tokenizer of the model.
        num_slots: Maximum number of concurrent requests; each slot has a KV cache of the full context.
        prefill_chunk: Prompt tokens per prefill chunk between two decode steps; smaller values reduce the delay of
            other requests.
        tool: Returns the result of a call or None: the calculator, or `python_tool.run_tool`. Decoding waits for it.

    Raises:
        UserError: If num_slots or prefill_chunk is less than 1, or (at the first request) if the KV caches do not fit
            the free memory.
    """

    @cached_property
    def _inboxes(self) -> list[_Inbox]:
        return []

    def generate(self, prompt_ids: Sequence[int], num_samples: int = 1, **sampling: Any) -> list[list[int]]:
        """Generate completions of one prompt.

        Args:
            prompt_ids: The prompt; prefilled once per num_slots samples.
            num_samples: Number of completions.
            sampling: Settings of `SamplingParams`; max_new_tokens defaults to 64. Sample i does not depend on
                num_samples.

        Returns:
            Token ids per sample, without the prompt and the end token.

        Raises:
            UserError: If the prompt is empty, has invalid token ids or exceeds the context, or a setting is invalid.
        """
        request = _request(prompt_ids, sampling)
        return self.complete([request], num_samples)

    def generate_batch(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        """Generate one completion per prompt, identical to separate calls; prompts beyond the slots are queued.

        Args:
            prompts: Prompts of any lengths.
            sampling: As in `generate`. Prompt i uses the random numbers of sample i.

        Returns:
            Token ids per prompt, in the order of the prompts.

        Raises:
            UserError: As `generate`.
        """
        request = _request((), sampling)
        return self.complete([replace(request, prompt_ids=prompt, sample=i) for i, prompt in enumerate(prompts)])

    def complete(self, requests: Sequence[Request], num_samples: int = 1) -> list[list[int]]:
        """Complete many requests, with several samples each.

        Args:
            requests: Requests to complete.
            num_samples: Completions per request; sample i uses the random numbers of `sample` + i.

        Returns:
            Token ids without the end token: all samples of the first request, then those of the second, and so on.

        Raises:
            UserError: If a request is invalid; nothing is generated then.
        """
        return [
            [token.token_id for token in tokens if token.token_id not in self.end_ids]
            for tokens in self.run(requests, num_samples)
        ]

    def run(self, requests: Sequence[Request], num_samples: int = 1) -> list[list[Emitted]]:
        """Like `complete`, but return every emitted token including the end token."""
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
                    # samples of one request that are admitted together share its prefill
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
        """Like `generate`, but yield tokens step by step.

        Args:
            prompt_ids: The prompt.
            num_samples: Number of completions, at most num_slots.
            sampling: As in `generate`.

        Returns:
            An iterator of (token per sample, mask per sample): mask 1 if the model sampled the token, 0 if a tool
            forced it. The end token is included with mask 1; finished samples repeat it with mask 0 while others
            continue.

        Raises:
            UserError: As `generate`; raised by the call, not by the first step.
        """
        _check_samples(num_samples)
        request = _request(prompt_ids, sampling)
        self.check(request)
        if num_samples > self.num_free:
            raise UserError(
                f"{num_samples} samples need {num_samples} slots, but {self.num_free} are free; increase num_slots"
            )
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
        """Return the next token of each watched slot, running the engine until there is one."""
        while not any(inbox.waiting.values()):
            for token in self.step():
                for other in self._inboxes:
                    if token.slot in other.waiting:
                        other.waiting[token.slot].append(token)
        tokens = [inbox.waiting[slot].popleft() for slot in inbox.slots if inbox.waiting[slot]]
        for token in tokens:
            if token.finish_reason == FAILED:
                raise UserError(token.error)
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
        raise UserError(f"num_samples is {num_samples}; it must be at least 1")

"""Generation of complete or streamed completions for one or more prompts."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import FAILED, Request
from nanochat_lit.engine.slots import Emitted, SlotEngine


class Engine(SlotEngine):
    """Generates completions of token prompts with a model and its tokenizer.

    A request ends with <|assistant_end|> or <|bos|>, at a stop string, after max_new_tokens tokens (including tool
    results), or when the context is full. Every token that the model reads takes one of its sequence_len positions, so
    a prompt of P tokens leaves space for sequence_len - P + 1 new ones. Tokens are computed once, and requests do not
    affect each other.

    Use `generate`, `generate_batch`, `complete` and `stream`; or, to serve requests continuously, `admit`, `step` and
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
    def _arrived(self) -> dict[int, deque[Emitted]]:
        """Tokens by slot that their iterator has not taken yet."""
        return {}

    def generate(self, prompt_ids: Sequence[int], num_samples: int = 1, **sampling: Any) -> list[list[int]]:
        """Generate completions of one prompt, which is prefilled once for the samples in the slots.

        Args:
            prompt_ids: The prompt.
            num_samples: Number of completions.
            sampling: Settings of `SamplingParams`; max_new_tokens defaults to 64. Sample i does not depend on
                num_samples.

        Returns:
            Token ids per sample, without the prompt and the end token.

        Raises:
            UserError: If the prompt is empty, has invalid token ids or exceeds the context, or a setting is invalid.
        """
        return self.complete([_request(prompt_ids, sampling)], num_samples)

    def generate_batch(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        """Generate one completion per prompt, in their order; prompts beyond the slots are queued.

        The settings are those of `generate`. Prompt i uses the random numbers of sample i.
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
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}; it must be at least 1")
        samples = [replace(request, sample=request.sample + i) for request in requests for i in range(num_samples)]
        completions: list[list[Emitted]] = [[] for _ in samples]
        for index, token in self.stream(samples):
            completions[index].append(token)
        return completions

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Emitted]]:
        """Return an iterator over the tokens of several requests, each with the index of its request.

        Several such iterators may take turns. Closing one aborts its requests.

        Raises:
            UserError: If a request is invalid; raised by the call, not by the first step.
        """
        for request in requests:
            self.check(request)
        return self._stream(deque(enumerate(requests)))

    def _stream(self, waiting: deque[tuple[int, Request]]) -> Iterator[tuple[int, Emitted]]:
        running: dict[int, int] = {}  # index by slot
        try:
            while waiting or running:
                while waiting and self.num_free:
                    index, request = waiting.popleft()
                    slot = self.admit(request)
                    running[slot], self._arrived[slot] = index, deque()
                if not any(self._arrived[slot] for slot in running):
                    for token in self.step():
                        if token.slot in self._arrived:
                            self._arrived[token.slot].append(token)
                for slot, index in list(running.items()):
                    arrived = self._arrived[slot]
                    while arrived:
                        token = arrived.popleft()
                        if token.finish_reason == FAILED:
                            raise UserError(token.error)
                        if token.finish_reason:
                            del running[slot], self._arrived[slot]
                        yield index, token
        finally:
            for slot in running:
                self.release(slot)
                del self._arrived[slot]


def _request(prompt_ids: Sequence[int], sampling: dict[str, Any]) -> Request:
    return Request(prompt_ids=prompt_ids, **{"max_new_tokens": 64, **sampling})

"""Generation: requests enter and leave slots at any time (continuous batching), with chunked prefill and batched decoding.

On a GPU the host is one step behind: it launches a decode step, then reads the tokens of the previous step. Sampled
tokens are passed to the next step on the device (SlotCache.next_tokens); tokens forced by a tool are known a step ahead
and overwrite them. A finished request takes part in one extra step, whose token is dropped.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import AnswerText, TokenScore
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.grammar import GrammarParsers
from nanochat_lit.engine.sampling import HostCopy, LogitRules, has_rules, row_random, sample_rows, to_device
from nanochat_lit.engine.sampling_params import FAILED, NOT_FINITE, TOO_COMPLEX, Request, check_prompt
from nanochat_lit.engine.slots import Chosen, Emitted, Prefill, Row
from nanochat_lit.engine.tool_use import Tool, ToolRow
from nanochat_lit.model import GPT, KVCache, SlotCache
from nanochat_lit.model.slot_cache import StepGraphs, check_room
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END

_OF_PROMPT = ("prompt_ids", "prompt_logprobs", "top_logprobs")
"""Fields that the prefill of a prompt depends on."""


class Engine:
    """Generates completions of token prompts with a model and its tokenizer.

    A request ends with <|assistant_end|> or <|bos|>, at a stop string, after max_new_tokens tokens (including tool
    results), or when the context is full. Every token that the model reads takes one of its sequence_len positions, so
    a prompt of P tokens leaves space for sequence_len - P + 1 new ones. Tokens are computed once. They do not depend on
    other requests: prompts are prefilled separately, the order of summation in a decode step does not depend on the
    number of sequences, and each request has its own random numbers.

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

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, num_slots: int = 32, prefill_chunk: int = 256, *, tool: Tool = calculate
    ) -> None:
        if num_slots < 1 or prefill_chunk < 1:
            raise UserError(f"num_slots is {num_slots} and prefill_chunk {prefill_chunk}; both must be at least 1")
        self.model = model
        self.tokenizer = tokenizer
        self.num_slots = num_slots
        self.prefill_chunk = prefill_chunk
        self.end_ids = frozenset((tokenizer.special_ids[ASSISTANT_END], tokenizer.bos_id))
        self.tool = tool
        self._lag = int(model.device.type == "cuda")
        """Number of steps that the host lags behind."""
        self._parsers = GrammarParsers(tokenizer)
        self._handles = itertools.count()
        self._arrived: dict[int, deque[Emitted]] = {}
        """Tokens by slot that their iterator has not taken yet."""
        self.reset()

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

    def reset(self) -> None:
        """Drop all requests; also usable after an exception within a step."""
        self._prefills: deque[Prefill] = deque()
        self._rows: list[Row] = []  # in the order of the cache's slots
        # caches of the prompt in prefill, and of the decoding slots
        self._caches: tuple[KVCache, SlotCache] | None = None
        self._graphs = StepGraphs(self._step, self.model.device)
        self._pending: deque[Chosen] = deque()

    def warm_up(self) -> None:
        """Run a dummy request, so that lazy builds and allocations happen before the first real one."""
        length = max(1, min(8, self.model.config.sequence_len - 1))
        self.admit(Request(prompt_ids=[self.tokenizer.bos_id] * length, max_new_tokens=2))
        while self.num_free < self.num_slots:
            self.step()

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return self.num_slots - len(self._rows) - sum(len(prefill.rows) for prefill in self._prefills)

    def check(self, request: Request) -> None:
        """Raise UserError if the prompt is invalid, or logit_bias names a token that the model does not have."""
        size = self.model.config.vocab_size
        check_prompt(request.prompt_ids, self.model.config.sequence_len, size)
        if unknown := [token for token, _ in request.logit_bias if not 0 <= token < size]:
            raise UserError(f"logit_bias names the token {unknown[0]}; the model's are from 0 to {size - 1}")

    def admit(self, request: Request) -> int:
        """Reserve a slot for a request and return its handle; the next steps prefill and then decode it.

        The reservation lasts until the last token or `release`; no other request gets the same handle. Raises UserError
        if the request is invalid, or no slot is free.
        """
        self.check(request)
        if not self.num_free:
            raise UserError(
                f"all {self.num_slots} slots are in use; wait for one, or make the engine with more num_slots"
            )
        row = Row(
            slot=next(self._handles),
            request=request,
            tool=ToolRow(self.tokenizer, self.tool, request.functions, deque(request.start_ids)),
            text=AnswerText(self.tokenizer, request.stop),
            random=row_random(request.seed, request.sample),
            rules=self._rules(request) if has_rules(request) else None,
            num_left=min(request.max_new_tokens, self.model.config.sequence_len - len(request.prompt_ids) + 1),
        )
        row.forced = row.unread = row.tool.next_forced()
        for prefill in self._prefills:  # samples of one prompt share its prefill
            if all(getattr(prefill.rows[0].request, name) == getattr(request, name) for name in _OF_PROMPT):
                prefill.rows.append(row)
                return row.slot
        self._prefills.append(Prefill(rows=[row], prompt_ids=request.prompt_ids))
        return row.slot

    def release(self, slot: int) -> None:
        """Abort the request in a slot; does nothing if it has just ended."""
        for prefill in self._prefills:
            prefill.rows = [row for row in prefill.rows if row.slot != slot]
        if self._prefills and not self._prefills[0].rows and self._caches:
            self._caches[0].reset()
        self._prefills = deque(prefill for prefill in self._prefills if prefill.rows)
        for index, row in enumerate(self._rows):
            if row.slot == slot:
                row.has_left = True
                self._drop(index)
                break

    def step(self) -> list[Emitted]:
        """Decode a token of every running request, then prefill a chunk of the oldest prompt; returns the new tokens."""
        is_needed = any(row.num_left > row.num_pending for row in self._rows)
        if is_needed:
            self._decode()
        emitted = self._come(self._allowed_lag if is_needed else 0)
        if self._prefills:
            self._read_prompt()
            emitted += self._come(self._allowed_lag)
        return emitted

    def _rules(self, request: Request) -> LogitRules:
        parser = self._parsers.parser(request.grammar) if request.grammar else None
        return LogitRules(request, self.model.config.vocab_size, self.model.device, parser)

    @property
    def _allowed_lag(self) -> int:
        """Return how many steps the host may lag behind: none if a request's logits depend on its last token."""
        return 0 if any(row.rules and row.rules.has_memory for row in self._rows) else self._lag

    @torch.inference_mode()
    def _decode(self) -> None:
        _, slots = self._cached()
        for index, row in enumerate(self._rows):
            if row.unread is not None:
                slots.next_tokens[index] = row.unread
                row.unread = None
        slots.begin_step(self._num_computed_rows)
        self._choose(self._rows, self._graphs(slots.step_shape)[: len(self._rows)])

    def _step(self) -> Tensor:
        """Return logits (B, V) after the slots' next tokens."""
        _, slots = self._cached()
        return self._forward(slots.next_tokens[: slots.step_shape[0], None], slots)

    @torch.inference_mode()
    def _read_prompt(self) -> None:
        """Launch a prefill chunk of the oldest prompt, and sample its first tokens after the last chunk."""
        reading, slots = self._cached()
        prefill = self._prefills[0]
        end = min(prefill.num_read + self.prefill_chunk, len(prefill.prompt_ids))
        chunk = to_device([prefill.prompt_ids[prefill.num_read : end]], torch.int64, self.model.device)
        if prefill.rows[0].request.prompt_logprobs:
            every = self.model(chunk, kv_cache=reading)[0]
            prefill.scores += self._scores(prefill, every)
            logits = every[-1:]
        else:
            logits = self._forward(chunk, reading)
        prefill.num_read = end
        if end < len(prefill.prompt_ids):
            return
        self._prefills.popleft()
        for row in prefill.rows:
            slots.insert(reading)
            row.prompt_scores = prefill.scores
            self._rows.append(row)
        reading.reset()
        self._choose(prefill.rows, logits.expand(len(prefill.rows), -1))

    @staticmethod
    def _scores(prefill: Prefill, logits: Tensor) -> list[TokenScore]:
        """Return the scores of the tokens that follow the next ones to read, given the logits (T, V) after these."""
        following = prefill.prompt_ids[prefill.num_read + 1 : prefill.num_read + 1 + len(logits)]
        logprobs = logits[: len(following)].float().log_softmax(dim=-1)
        own = logprobs.gather(1, to_device(following, torch.int64, logits.device)[:, None])[:, 0].tolist()
        most_likely = logprobs.topk(min(prefill.rows[0].request.top_logprobs, logprobs.shape[1]), dim=-1)
        ids, values = most_likely.indices.tolist(), most_likely.values.tolist()
        tops = [list(zip(*pairs, strict=True)) for pairs in zip(ids, values, strict=True)]
        return list(map(TokenScore, following, own, tops))

    def _forward(self, inputs: Tensor, cache: KVCache | SlotCache) -> Tensor:
        """Return logits (B, V) after the last new token; the cache stores the new tokens."""
        return self.model(inputs, kv_cache=cache, last_only=True)[:, -1]

    @property
    def _num_computed_rows(self) -> int:
        """Return the minimum batch size of a decode step, so that results do not depend on the number of requests.

        Measured on CPU: bfloat16 matmuls have this property for any batch size, packed float32 matmuls from 4 sequences
        on (plain float32 matmuls with several threads do not). With several threads, the last bit of float32 attention
        still depends on buffer alignment, which changes logits by about 1e-7. GPU libraries select kernels by batch
        size, so there the batch size is constant.
        """
        if self.model.decode_kernel is not None:
            return 1  # sequences are computed independently, for any batch size and number of threads
        if self.model.device.type != "cpu":
            return self.num_slots
        return 1 if self.model.compute_dtype == torch.bfloat16 else 4

    def _cached(self) -> tuple[KVCache, SlotCache]:
        """Return the caches, created at the first request."""
        if self._caches is None:
            config, device, dtype = self.model.config, self.model.device, self.model.compute_dtype
            with torch.inference_mode():
                room = max(self.num_slots, self._num_computed_rows)
                has_kernel = self.model.decode_kernel is not None
                check_room(config, room, config.sequence_len, device, dtype, has_kernel)
                reading = KVCache(config, 1, config.sequence_len, device, dtype)
                self._caches = reading, SlotCache(config, room, config.sequence_len, device, dtype, has_kernel)
        return self._caches

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Launch the sampling of the next token for requests in consecutive slots."""
        first = self._rows.index(rows[0])
        is_finite = logits.sum(dim=-1).isfinite()
        if self._lag or not is_finite.all():  # with a lag, checking would synchronize the device
            logits = torch.where(is_finite[:, None], logits, 0.0)
        shaped = logits
        if any(row.rules for row in rows):
            shaped = torch.stack([row.rules.apply(z) if row.rules else z for row, z in zip(rows, logits, strict=True)])
            for index in [index for index, row in enumerate(rows) if row.rules and row.rules.has_failed]:
                is_finite[index] = False
        tokens = sample_rows([row.request for row in rows], [row.random for row in rows], shaped)
        self._cached()[1].next_tokens[first : first + len(rows)] = tokens
        logprobs, top = None, None
        if any(row.request.logprobs for row in rows):
            whole = logits.float().log_softmax(dim=-1)
            logprobs = HostCopy(whole.gather(1, tokens[:, None])[:, 0])
            if most := max(row.request.top_logprobs for row in rows):
                most_likely = whole.topk(min(most, whole.shape[1]), dim=-1)
                top = HostCopy(most_likely.indices), HostCopy(most_likely.values)
        for row in rows:
            row.num_pending += 1
        self._pending.append(Chosen(list(rows), HostCopy(torch.where(is_finite, tokens, -1)), logprobs, top))

    def _come(self, lag: int) -> list[Emitted]:
        """Return the tokens that have reached the host, except of the last `lag` steps; remove finished requests."""
        emitted = []
        while len(self._pending) > lag:
            chosen = self._pending.popleft()
            logprobs = chosen.logprobs.tolist() if chosen.logprobs else [None] * len(chosen.rows)
            ids, values = [copy.tolist() for copy in chosen.top] if chosen.top else [[[]] * len(chosen.rows)] * 2
            found = zip(chosen.rows, chosen.tokens.tolist(), logprobs, ids, values, strict=True)
            for row, token_id, logprob, most_likely, their_logprobs in found:
                if row.has_left:
                    continue
                if token_id < 0:
                    row.has_failed = True
                    error = TOO_COMPLEX if row.rules and row.rules.has_failed else NOT_FINITE
                    emitted.append(Emitted(row.slot, -1, False, [], None, FAILED, error=error))
                else:
                    top = list(zip(most_likely, their_logprobs, strict=True))[
                        : row.request.top_logprobs * row.request.logprobs
                    ]
                    emitted.append(self._take(row, token_id, logprob if row.request.logprobs else None, top))
                if emitted[-1].finish_reason:
                    self.release(row.slot)
        return emitted

    def _take(self, row: Row, choice: int, logprob: float | None, top: list[tuple[int, float]]) -> Emitted:
        """Append a token to a request: the sampled one, or one forced by a tool."""
        is_forced = row.forced is not None
        token_id = choice if row.forced is None else row.forced
        if row.rules and not is_forced:
            row.rules.take(token_id)
        row.num_left -= 1
        row.num_pending -= 1
        row.tool.observe(token_id)
        row.forced = row.tool.next_forced()
        if row.num_pending:  # the following token was already sampled
            row.unread = row.forced
        elif is_forced:
            row.unread = token_id
        pieces = [] if row.tool.has_ended else row.text.push(token_id)
        has_ended = row.tool.has_ended or row.text.has_stopped
        reason = "stop" if has_ended else "length" if row.num_left == 0 else None
        if reason:
            pieces = pieces + row.text.finish()
        prompt_scores, row.prompt_scores = row.prompt_scores, []
        logprob, top = (None, []) if is_forced else (logprob, top)
        return Emitted(row.slot, token_id, is_forced, pieces, logprob, reason, top, prompt_scores=prompt_scores)

    def _drop(self, index: int) -> None:
        """Remove a request; the last one moves into its slot, also in the cache."""
        with torch.inference_mode():
            if self._rows[index].has_failed or self._rows[index].num_pending:
                self._cached()[1].clear(index)
            self._cached()[1].remove(index)
        self._rows[index] = self._rows[-1]
        self._rows.pop()


def _request(prompt_ids: Sequence[int], sampling: dict[str, Any]) -> Request:
    return Request(prompt_ids=prompt_ids, **{"max_new_tokens": 64, **sampling})

"""Slots that requests enter and leave at any time: prompts read in chunks, one cached decode step for all.

On a GPU the host is one step behind: it starts a decode step, then looks at the tokens of the step before, which have come
meanwhile. Chosen tokens go into the next step on the device (SlotCache.next_tokens); what a tool forces is known a step ahead,
and written over them in time. A row that has ended is in one step too many, whose token is dropped.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import AnswerText, Piece
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.sampling import HostCopy, has_sampling_kernel, row_random, sample_each, sample_next, to_device
from nanochat_lit.engine.sampling_params import FAILED, Request, check_prompt
from nanochat_lit.engine.tool_use import Tool, ToolRow
from nanochat_lit.model import GPT, KVCache, SlotCache
from nanochat_lit.model.slot_cache import check_room
from nanochat_lit.model.step_graphs import StepGraphs
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END


class Emitted(NamedTuple):
    """One new token of one request."""

    slot: int
    """What `Engine.admit` returned."""
    token_id: int
    is_forced: bool
    """Whether a tool forced it; the model chose the others."""
    pieces: list[Piece]
    """Text that became certain with it."""
    logprob: float | None
    """Log-probability in nats at temperature 1, where the request asked for it and the model chose the token."""
    finish_reason: str | None
    """None while the request goes on; with its last token "stop" (the model or a stop string ended it) or "length". FAILED
    comes without a token."""


@dataclass(slots=True)
class _Row:
    """A request that holds a slot."""

    slot: int
    request: Request
    tool: ToolRow
    text: AnswerText
    random: Random
    num_left: int
    """Tokens it may still emit."""
    num_pending: int = 0
    """Of these, those that were chosen and have not come to the host."""
    forced: int | None = None
    """What a tool wants as the next token to come."""
    unread: int | None = None
    """What a tool forced in place of the chosen token that the model reads next."""
    has_left: bool = False
    has_failed: bool = False
    """Whether its logits were not finite, and its keys and values may be NaN."""


@dataclass(slots=True)
class _Prefill:
    """A prompt being read, for one row or for several samples of it."""

    rows: list[_Row]
    prompt_ids: Sequence[int]
    num_read: int = 0


@dataclass(slots=True)
class _Chosen:
    """The next token of some rows, on its way to the host."""

    rows: list[_Row]
    tokens: HostCopy
    logprobs: HostCopy | None


class SlotEngine:
    """Decodes many requests together; see `Engine`, which adds ways to run whole requests.

    A request's tokens do not depend on its neighbours: prompts are read alone, in chunks; the decode step computes every row
    with the same sums whatever the number of rows; each row draws its own random numbers. One thread at a time.

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
        if num_slots < 1 or prefill_chunk < 1:
            raise UserError(f"num_slots is {num_slots} and prefill_chunk {prefill_chunk}; both must be at least 1")
        self.model = model
        self.tokenizer = tokenizer
        self.num_slots = num_slots
        self.prefill_chunk = prefill_chunk
        self.end_ids = frozenset((tokenizer.special_ids[ASSISTANT_END], tokenizer.bos_id))
        self.tool = tool
        self._lag = int(model.device.type == "cuda")
        """Steps that the host is behind."""
        self.reset()

    def reset(self) -> None:
        """Forget all requests, also after an exception in the middle of a step."""
        self._free = list(range(self.num_slots))[::-1]
        self._prefills: deque[_Prefill] = deque()
        self._rows: list[_Row] = []  # in the order of the cache's slots
        self._caches: tuple[KVCache, SlotCache] | None = None  # one prompt being read; all that are decoded
        self._graphs = StepGraphs(self._step, self.model.device)
        self._pending: deque[_Chosen] = deque()

    def warm_up(self) -> None:
        """Run a request of no one's, so that what is built or allocated at its first use is so before anyone waits."""
        length = max(1, min(8, self.model.config.sequence_len - 1))
        slot = self.admit(Request(prompt_ids=[self.tokenizer.bos_id] * length, max_new_tokens=2))
        while slot not in self._free:
            self.step()

    @property
    def num_free(self) -> int:
        """Slots that no request holds."""
        return len(self._free)

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be served.

        Raises:
            UserError: As `check_prompt`.
        """
        check_prompt(request.prompt_ids, self.model.config.sequence_len, self.model.config.vocab_size)

    def admit(self, request: Request) -> int:
        """Give a request a slot; the next steps read its prompt and then extend it.

        Returns:
            Its slot, which is its own until its last token or `release`.

        Raises:
            UserError: If it cannot be served, or no slot is free.
        """
        return self._admit(request, 1)[0]

    def release(self, slot: int) -> None:
        """Forget the request in a slot now. Nothing happens if it has just ended."""
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
        if slot not in self._free:
            self._free.append(slot)

    def step(self) -> list[Emitted]:
        """Extend every request that is being decoded by one token, then read on in the oldest prompt that is not yet read.

        Returns:
            The new tokens, at most one of each request.
        """
        is_needed = any(row.num_left > row.num_pending for row in self._rows)
        if is_needed:
            self._decode()
        emitted = self._come(self._lag if is_needed else 0)
        if self._prefills:
            self._read_prompt()
            emitted += self._come(self._lag)
        return emitted

    def _admit(self, request: Request, num_samples: int) -> list[int]:
        self.check(request)
        if num_samples > len(self._free):
            raise UserError(
                f"all {self.num_slots} slots are in use; wait for one, or make the engine with more num_slots"
            )
        num_left = min(request.max_new_tokens, self.model.config.sequence_len - len(request.prompt_ids) + 1)
        tools = [ToolRow(self.tokenizer, self.tool) for _ in range(num_samples)]
        rows = [
            _Row(
                slot=self._free.pop(),
                request=request,
                tool=tool,
                text=AnswerText(self.tokenizer, request.stop),
                random=row_random(request.seed, request.sample + i),
                num_left=num_left,
            )
            for i, tool in enumerate(tools)
        ]
        for row in rows:
            row.forced = row.unread = row.tool.next_forced()
        self._prefills.append(_Prefill(rows=rows, prompt_ids=request.prompt_ids))
        return [row.slot for row in rows]

    @torch.inference_mode()
    def _decode(self) -> None:
        """Start one token more of every row."""
        _, slots = self._cached()
        for index, row in enumerate(self._rows):
            if row.unread is not None:
                slots.next_tokens[index] = row.unread
                row.unread = None
        slots.begin_step(self._num_computed_rows)
        self._choose(self._rows, self._graphs(slots.step_shape)[: len(self._rows)])

    def _step(self) -> Tensor:
        """Logits (B, V) after the slots' next tokens."""
        _, slots = self._cached()
        return self._forward(slots.next_tokens[: slots.step_shape[0], None], slots)

    @torch.inference_mode()
    def _read_prompt(self) -> None:
        """Start a chunk of the oldest prompt, and its first tokens if that is the last chunk."""
        reading, slots = self._cached()
        prefill = self._prefills[0]
        end = min(prefill.num_read + self.prefill_chunk, len(prefill.prompt_ids))
        chunk = to_device([prefill.prompt_ids[prefill.num_read : end]], torch.int64, self.model.device)
        logits = self._forward(chunk, reading)
        prefill.num_read = end
        if end < len(prefill.prompt_ids):
            return
        self._prefills.popleft()
        for row in prefill.rows:
            slots.insert(reading)
            self._rows.append(row)
        reading.reset()
        self._choose(prefill.rows, logits.expand(len(prefill.rows), -1))

    def _forward(self, inputs: Tensor, cache: KVCache | SlotCache) -> Tensor:
        """Logits (B, V) after the last of the new tokens, which the cache takes in."""
        return self.model(inputs, kv_cache=cache, last_only=True)[:, -1]

    @property
    def _num_computed_rows(self) -> int:
        """Rows that a decode step computes at least, for sums that do not depend on how many there are.

        Measured on CPU: products in bfloat16 have that property at any number of rows, packed ones in float32 from 4 rows on
        (plain ones in float32 have not, with several threads). What is left with several threads is the last bit of
        attention in float32, which depends on the alignment of a buffer per thread: it moves logits by about 1e-7. A GPU's
        libraries choose their kernels by the number of rows, so there it is always the same.
        """
        if self.model.decode_kernel is not None:
            return 1  # each row by itself, whatever the number of rows and threads
        if self.model.device.type != "cpu":
            return self.num_slots
        return 1 if self.model.compute_dtype == torch.bfloat16 else 4

    def _cached(self) -> tuple[KVCache, SlotCache]:
        """The caches, made when the first request comes."""
        if self._caches is None:
            config, device, dtype = self.model.config, self.model.device, self.model.compute_dtype
            with torch.inference_mode():
                room = max(self.num_slots, self._num_computed_rows)
                has_kernel = self.model.decode_kernel is not None
                check_room(config, room, config.sequence_len, device, dtype, has_kernel)
                reading = KVCache(config, 1, config.sequence_len, device, dtype)
                self._caches = reading, SlotCache(config, room, config.sequence_len, device, dtype, has_kernel)
        return self._caches

    def _choose(self, rows: Sequence[_Row], logits: Tensor) -> None:
        """Start choosing the next token of rows that follow each other in the slots."""
        first = self._rows.index(rows[0])
        is_finite = logits.sum(dim=-1).isfinite()
        if self._lag or not is_finite.all():  # a device that runs behind is not asked: it would be waited for
            logits = torch.where(is_finite[:, None], logits, 0.0)
        tokens = _sample_rows([row.request for row in rows], [row.random for row in rows], logits)
        self._cached()[1].next_tokens[first : first + len(rows)] = tokens
        logprobs = None
        if any(row.request.logprobs for row in rows):
            logprobs = HostCopy(logits.float().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0])
        for row in rows:
            row.num_pending += 1
        self._pending.append(_Chosen(list(rows), HostCopy(torch.where(is_finite, tokens, -1)), logprobs))

    def _come(self, lag: int) -> list[Emitted]:
        """The tokens that have come, all but those of the last steps; rows that end leave."""
        emitted = []
        while len(self._pending) > lag:
            chosen = self._pending.popleft()
            logprobs = chosen.logprobs.tolist() if chosen.logprobs else [None] * len(chosen.rows)
            for row, token_id, logprob in zip(chosen.rows, chosen.tokens.tolist(), logprobs, strict=True):
                if row.has_left:
                    continue
                if token_id < 0:
                    row.has_failed = True
                    emitted.append(Emitted(row.slot, -1, False, [], None, FAILED))
                else:
                    emitted.append(self._take(row, token_id, logprob if row.request.logprobs else None))
                if emitted[-1].finish_reason:
                    self.release(row.slot)
        return emitted

    def _take(self, row: _Row, choice: int, logprob: float | None) -> Emitted:
        """Add a token to a row: the choice, or what a tool forces."""
        is_forced = row.forced is not None
        token_id = choice if row.forced is None else row.forced
        row.num_left -= 1
        row.num_pending -= 1
        row.tool.observe(token_id)
        row.forced = row.tool.next_forced()
        if row.num_pending:  # the token after this one was chosen already
            row.unread = row.forced
        elif is_forced:
            row.unread = token_id
        pieces = [] if row.tool.has_ended else row.text.push(token_id)
        reason = None
        if row.tool.has_ended or row.text.has_stopped:
            reason = "stop"
        elif row.num_left == 0:
            reason = "length"
        if reason:
            pieces = pieces + row.text.finish()
        return Emitted(row.slot, token_id, is_forced, pieces, None if is_forced else logprob, reason)

    def _drop(self, index: int) -> None:
        """Remove a row; the last one takes its place, in the cache too."""
        with torch.inference_mode():
            if self._rows[index].has_failed or self._rows[index].num_pending:
                self._cached()[1].clear(index)
            self._cached()[1].remove(index)
        self._rows[index] = self._rows[-1]
        self._rows.pop()


def _sample_rows(requests: Sequence[Request], randoms: Sequence[Random], logits: Tensor) -> Tensor:
    """A token per row, (B,) on the device; without our kernel, rows with the same settings are sampled together."""
    if has_sampling_kernel(logits):
        uniforms = [draw.random() if r.temperature else 0.0 for r, draw in zip(requests, randoms, strict=True)]
        return torch.tensor(sample_each(logits, requests, uniforms))
    groups: dict[tuple[float, int, float], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault((request.temperature, request.top_k, request.top_p), []).append(index)
    tokens = torch.empty(len(requests), dtype=torch.int64, device=logits.device)
    for members in groups.values():
        sampling, uniforms = requests[members[0]], [randoms[i].random() for i in members]
        if len(groups) == 1:
            return sample_next(logits, sampling, uniforms)
        places = to_device(members, torch.int64, logits.device)
        tokens[places] = sample_next(logits[places], sampling, uniforms)
    return tokens

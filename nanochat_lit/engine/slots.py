"""Slots that requests enter and leave at any time: prompts read in chunks, one cached decode step for all."""

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
from nanochat_lit.engine.request import Request, check_request
from nanochat_lit.engine.sampling import row_random, sample_next
from nanochat_lit.engine.sampling_kernel import has_sampling_kernel, sample_each
from nanochat_lit.engine.tool_use import Tool, ToolRow
from nanochat_lit.model import GPT, KVCache, SlotCache
from nanochat_lit.model.slot_cache import check_room
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
    """None while the request goes on; with its last token "stop" (the model or a stop string ended it) or "length"."""


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
    last_token: int = -1
    """The newest one, which the model has not read yet."""


@dataclass(slots=True)
class _Prefill:
    """A prompt being read, for one row or for several samples of it."""

    rows: list[_Row]
    prompt_ids: Sequence[int]
    num_read: int = 0


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
        self._free = list(range(num_slots))[::-1]
        self._prefills: deque[_Prefill] = deque()
        self._rows: list[_Row] = []  # in the order of the cache's slots
        self._caches: tuple[KVCache, SlotCache] | None = None  # one prompt being read; all that are decoded

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
            UserError: As `check_request`.
        """
        check_request(request, self.model.config.sequence_len, self.model.config.vocab_size)

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
                self._drop(index)
                break
        if slot not in self._free:
            self._free.append(slot)

    def step(self) -> list[Emitted]:
        """Extend every request that is being decoded by one token, then read on in the oldest prompt that is not yet read.

        Returns:
            The new tokens, at most one of each request.
        """
        emitted = self._decode() if self._rows else []
        return emitted + self._read_prompt() if self._prefills else emitted

    def _admit(self, request: Request, num_samples: int) -> list[int]:
        self.check(request)
        if num_samples > len(self._free):
            raise UserError(
                f"all {self.num_slots} slots are in use; wait for one, or make the engine with more num_slots"
            )
        num_left = min(request.max_new_tokens, self.model.config.sequence_len - len(request.prompt_ids) + 1)
        rows = [
            _Row(
                slot=self._free.pop(),
                request=request,
                tool=ToolRow(self.tokenizer, self.tool),
                text=AnswerText(self.tokenizer, request.stop),
                random=row_random(request.seed, request.sample + i),
                num_left=num_left,
            )
            for i in range(num_samples)
        ]
        self._prefills.append(_Prefill(rows=rows, prompt_ids=request.prompt_ids))
        return [row.slot for row in rows]

    def _decode(self) -> list[Emitted]:
        """One token more of every row."""
        _, slots = self._cached()
        with torch.inference_mode():
            slots.begin_step(self._num_computed_rows)
            scratch = len(slots.previous_embedding) - len(self._rows)
            inputs = torch.tensor([[row.last_token] for row in self._rows] + [[0]] * scratch)
            logits = self._forward(inputs, slots)[: len(self._rows)]
            return self._choose(self._rows, logits)

    def _read_prompt(self) -> list[Emitted]:
        """A chunk of the oldest prompt; its first tokens if that was the last chunk."""
        reading, slots = self._cached()
        prefill = self._prefills[0]
        end = min(prefill.num_read + self.prefill_chunk, len(prefill.prompt_ids))
        with torch.inference_mode():
            logits = self._forward(torch.tensor([prefill.prompt_ids[prefill.num_read : end]]), reading)
            prefill.num_read = end
            if end < len(prefill.prompt_ids):
                return []
            self._prefills.popleft()
            for row in prefill.rows:
                slots.insert(reading)
                self._rows.append(row)
            reading.reset()
            return self._choose(prefill.rows, logits.expand(len(prefill.rows), -1))

    def _forward(self, inputs: Tensor, cache: KVCache | SlotCache) -> Tensor:
        """Logits (B, V) after the last of the new tokens, which the cache takes in."""
        return self.model(inputs.to(self.model.device), kv_cache=cache, last_only=True)[:, -1]

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

    def _choose(self, rows: Sequence[_Row], logits: Tensor) -> list[Emitted]:
        """The next token of each row, sampled or forced; rows that end leave."""
        chosen = _sample_rows([row.request for row in rows], [row.random for row in rows], logits)
        emitted = []
        for index, (row, choice) in enumerate(zip(rows, chosen, strict=True)):
            forced = row.tool.next_forced()
            token_id = choice if forced is None else forced
            logprob = None
            if row.request.logprobs and forced is None:
                logprob = float(logits[index].float().log_softmax(dim=-1)[token_id])
            emitted.append(self._take(row, token_id, forced is not None, logprob))
        for token in emitted:
            if token.finish_reason:
                self.release(token.slot)
        return emitted

    def _take(self, row: _Row, token_id: int, is_forced: bool, logprob: float | None) -> Emitted:
        """Add a token to a row."""
        row.last_token = token_id
        row.num_left -= 1
        row.tool.observe(token_id)
        pieces = [] if row.tool.has_ended else row.text.push(token_id)
        reason = None
        if row.tool.has_ended or row.text.has_stopped:
            reason = "stop"
        elif row.num_left == 0:
            reason = "length"
        if reason:
            pieces = pieces + row.text.finish()
        return Emitted(row.slot, token_id, is_forced, pieces, logprob, reason)

    def _drop(self, index: int) -> None:
        """Remove a row; the last one takes its place, in the cache too."""
        with torch.inference_mode():
            self._cached()[1].remove(index)
        self._rows[index] = self._rows[-1]
        self._rows.pop()


def _sample_rows(requests: Sequence[Request], randoms: Sequence[Random], logits: Tensor) -> list[int]:
    """A token per row; without our kernel, rows with the same settings are sampled together."""
    if has_sampling_kernel(logits):
        uniforms = [draw.random() if r.temperature else 0.0 for r, draw in zip(requests, randoms, strict=True)]
        temperatures, top_ps = [r.temperature for r in requests], [r.top_p for r in requests]
        return sample_each(logits, temperatures, [r.top_k for r in requests], top_ps, uniforms)
    groups: dict[tuple[float, int | None, float], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault((request.temperature, request.top_k, request.top_p), []).append(index)
    tokens = [0] * len(requests)
    for (temperature, top_k, top_p), members in groups.items():
        uniforms = [randoms[i].random() for i in members]
        chosen = sample_next(logits[members], temperature, top_k, top_p, uniforms)
        for index, token_id in zip(members, chosen.tolist(), strict=True):
            tokens[index] = token_id
    return tokens

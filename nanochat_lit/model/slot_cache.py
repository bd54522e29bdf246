"""Keys and values of many sequences at different positions, which a decode step extends by one token each.

Slots in use are the first `num_active` ones, so a step works on plain slices of the cache and costs what they need. A layer
with a window w keeps a ring of w + 1 positions: keys carry their rotation, and attention does not care about their order.

All that a step reads and writes stays in place on the device, positions included, and its shapes depend on `step_shape` alone:
a step can be captured in a CUDA graph (`StepGraphs`) and replayed, which starts a thousand small kernels by one call. A step of
a small model keeps a GPU busy for less time than the host needs to start its kernels one by one.

Shapes: B active slots, L visible keys, Hkv key/value heads, D head dim, C channels.
"""

import logging
from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import free_memory_bytes, memory_text, padded_length
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.model.kv_cache import KVCache

LENGTH_STEP = 64
"""Keys are read in whole multiples of this many: few different shapes occur, and sums over a sequence's keys do not depend
on how many masked ones follow them."""


class SlotCache:
    """Preallocated room for `num_slots` sequences of up to `max_len` tokens.

    `dtype` is the model's compute dtype; `has_kernel` states whether our kernel decodes.
    """

    def __init__(
        self,
        config: GPTConfig,
        num_slots: int,
        max_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        has_kernel: bool = False,
    ) -> None:
        self.max_len = max_len
        self.num_active = 0
        self.rooms = [min(window + 1, max_len) for window in config.windows]
        """Positions that each layer keeps of a sequence."""
        shapes = [(num_slots, config.n_kv_head, _whole_steps(room), config.head_dim) for room in self.rooms]
        cache_dtype = stored_dtype(torch.device(device or "cpu"), dtype, has_kernel)
        # zeros, not empty: what lies beyond a sequence's end is masked, and a mask does not hide a NaN
        self.keys = [torch.zeros(shape, device=device, dtype=cache_dtype) for shape in shapes]
        self.values = [torch.zeros(shape, device=device, dtype=cache_dtype) for shape in shapes]
        self.embeddings = torch.zeros((num_slots, 1, config.n_embd), device=device, dtype=dtype)
        """Normalised, un-smeared embedding of each slot's last token."""
        self.tokens = torch.zeros((num_slots, 1), device=device, dtype=torch.int64)
        """Id of each slot's last token; kept if the model has a bigram embedding."""
        self.next_tokens = torch.zeros(num_slots, device=device, dtype=torch.int64)
        """Id of the token that each slot reads next; sampling writes them here, so the host need not see them."""
        self.step_shape = (0, 0)
        """Rows and keys of the step that `begin_step` has prepared."""
        self._lengths: list[int] = [0] * num_slots
        self._lengths_before = self._lengths
        self._rows = torch.arange(num_slots, device=device)
        self._all_positions = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._masks: dict[int, Tensor] = {}  # of the keys that are read, by room; made when first asked for

    @property
    def num_slots(self) -> int:
        """Sequences there is room for."""
        return len(self._lengths)

    @property
    def num_bytes(self) -> int:
        """Size of keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def length(self, slot: int) -> int:
        """Tokens stored in a slot."""
        return self._lengths[slot]

    def lengths(self, num_rows: int) -> list[int]:
        """Tokens that the first slots held before this step, each with room for one more."""
        lengths = self._lengths_before[:num_rows]
        assert max(lengths) < self.max_len, f"a slot has room for {self.max_len} tokens and is full"
        return lengths

    def insert(self, prefilled: KVCache) -> int:
        """Copy what the model has read of a sequence, a cache of one row, into the next free slot; return the slot."""
        assert prefilled.batch_size == 1, f"one sequence is inserted at a time, this cache has {prefilled.batch_size}"
        assert prefilled.position, "only a sequence that was read can be inserted"
        assert self.num_active < self.num_slots, f"all {self.num_slots} slots are in use"
        slot, length = self.num_active, prefilled.position
        assert length <= self.max_len, f"a slot has room for {self.max_len} tokens, the sequence has {length}"
        for layer, (keys, values, room) in enumerate(zip(self.keys, self.values, self.rooms, strict=True)):
            start = max(0, length - room)  # older ones have left the window
            turn = min(length, (start // room + 1) * room)  # where the ring begins anew
            for begin, end in ((start, turn), (turn, length)):
                if begin < end:
                    place = begin % room
                    keys[slot, :, place : place + end - begin] = prefilled.keys[layer, 0, begin:end].transpose(0, 1)
                    values[slot, :, place : place + end - begin] = prefilled.values[layer, 0, begin:end].transpose(0, 1)
        if prefilled.previous_embedding is not None:
            self.embeddings[slot] = prefilled.previous_embedding[0]
        if prefilled.previous_token is not None:
            self.tokens[slot] = prefilled.previous_token[0]
        self._lengths[slot] = length
        self._all_positions[slot] = min(length, self.max_len - 1)
        self.num_active += 1
        return slot

    def clear(self, slot: int) -> None:
        """Zero what a slot holds, which a NaN in it would outlive: a mask does not hide it."""
        for tensor in (*self.keys, *self.values, self.embeddings):
            tensor[slot].zero_()

    def remove(self, slot: int) -> None:
        """Free a slot; the last active sequence moves into it."""
        self.num_active -= 1
        last = self.num_active
        if slot != last:
            for tensor in (*self.keys, *self.values):
                used = min(self._lengths[last], tensor.shape[2])
                tensor[slot, :, :used] = tensor[last, :, :used]
            for tensor in (self.embeddings, self.tokens, self.next_tokens, self._all_positions):
                tensor[slot] = tensor[last]
            self._lengths[slot] = self._lengths[last]
        self._lengths[last] = 0
        self._all_positions[last] = 0

    def begin_step(self, num_rows: int | None = None) -> None:
        """Prepare for one more token of every active slot, and count it.

        Some kernels need `num_rows` rows at least to give a row the same result whatever is beside it; those beyond the
        active ones are scratch.
        """
        rows = max(self.num_active, num_rows or 0)
        self._lengths_before = self._lengths[:rows]
        # one of few values: lengths of slots would cause a new compilation or graph for each of them
        self.step_shape = rows, _whole_steps(padded_length(self.position + 1, self.max_len))
        for slot in range(self.num_active):
            self._lengths[slot] += 1

    def _mask(self, room: int) -> Tensor:
        """Of a layer's keys, which each slot sees in this step: (B, 1, 1, L)."""
        if room not in self._masks:
            places = torch.arange(self.step_shape[1], device=self._positions.device)
            # of a ring that is full every place is visible: all are at or below the position
            visible = (places <= self._positions[:, None])[:, None, None]
            self._masks[room] = (visible & (places < room))[..., : _whole_steps(room)]
        return self._masks[room]

    @property
    def _positions(self) -> Tensor:
        return self._all_positions[: self.step_shape[0]]

    # what GPT asks of a cache while it runs

    @property
    def position(self) -> int:
        """Tokens of the longest sequence before this step; a full one has ended, and its slot is scratch."""
        return min(max(self._lengths_before), self.max_len - 1)

    @property
    def previous_embedding(self) -> Tensor:
        """(B, 1, C) normalised, un-smeared embedding of each slot's last token."""
        return self.embeddings[: self.step_shape[0]]

    @previous_embedding.setter
    def previous_embedding(self, embedding: Tensor) -> None:
        self.embeddings[: self.step_shape[0]] = embedding

    @property
    def previous_token(self) -> Tensor:
        """(B, 1) id of each slot's last token."""
        return self.tokens[: self.step_shape[0]]

    @previous_token.setter
    def previous_token(self, token_ids: Tensor) -> None:
        self.tokens[: self.step_shape[0]] = token_ids

    def rotary(self, cos: Tensor, sin: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Rows of the rotary tables for the new tokens, (B, 1, D/2) each."""
        assert num_tokens == 1, "slots are extended by one token at a time"
        self._masks = {}  # this step's own: in a graph they are made from the positions at every replay
        return cos[self._positions].unsqueeze(1), sin[self._positions].unsqueeze(1)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:  # noqa: ARG002
        """Store the new token of each slot, (B, 1, Hkv, D), and let its query, (B, 1, H, D), attend to the slot.

        The ring has already forgotten the tokens before the window.
        """
        all_keys, all_values, room = self.keys[layer], self.values[layer], self.rooms[layer]
        rows, num_heads, head_dim = queries.shape[0], queries.shape[2], queries.shape[3]
        places = self._positions if room == self.max_len else self._positions % room
        all_keys[self._rows[:rows], :, places] = keys[:, 0].to(all_keys.dtype)
        all_values[self._rows[:rows], :, places] = values[:, 0].to(all_values.dtype)
        mask = self._mask(room)
        num_keys = mask.shape[-1]
        # a group of query heads that shares its keys is attended to like several queries of one head: nothing is copied
        mixed = F.scaled_dot_product_attention(
            queries.reshape(rows, all_keys.shape[1], -1, head_dim).to(all_keys.dtype),
            all_keys[:rows, :, :num_keys],
            all_values[:rows, :, :num_keys],
            attn_mask=mask,
        )
        return mixed.reshape(rows, 1, num_heads, head_dim).to(queries.dtype)

    def advance(self, num_tokens: int) -> None:
        """Count the tokens of the step on the device, where `begin_step` has not."""
        self._positions.add_(num_tokens).clamp_(max=self.max_len - 1)


def check_room(
    config: GPTConfig,
    num_slots: int,
    max_len: int,
    device: torch.device,
    dtype: torch.dtype,
    has_kernel: bool = False,
    free: int | None = None,
) -> None:
    """Raise UserError for a SlotCache that exceeds the free memory; the system would fail later, at its allocation.

    `free` are the bytes that can be taken; None asks the system, and if it does not say, nothing is refused.
    """
    free = free_memory_bytes(device) if free is None else free
    positions = sum(_whole_steps(min(window + 1, max_len)) for window in config.windows)
    each = 2 * positions * config.n_kv_head * config.head_dim * stored_dtype(device, dtype, has_kernel).itemsize
    if free is None or num_slots * each <= free:
        return
    fix = f"use at most {free // each} slots" if free >= each else "free some memory, or use a smaller model"
    raise UserError(
        f"{num_slots} slots of {max_len} tokens need {memory_text(num_slots * each)} for keys and values, "
        f"but {memory_text(free)} is free on {device}; {fix}"
    )


def stored_dtype(device: torch.device, dtype: torch.dtype, has_kernel: bool) -> torch.dtype:
    """Return the dtype of keys and values: the compute dtype, but float32 on a CPU without our kernel.

    Torch's attention of one query a head is 3 to 8 times faster there than in bfloat16 (measured: 16 rows, 4 heads of 64, 256
    keys: 0.17 ms against 1.35). Our kernel waits for the memory that they are read from.
    """
    return torch.float32 if device.type == "cpu" and not has_kernel else dtype


def _whole_steps(num_keys: int) -> int:
    return -(-num_keys // LENGTH_STEP) * LENGTH_STEP


GRAPH_BYTES = 1 << 29
"""Free memory without which no graph is captured; the graphs of all shapes share their intermediate results."""

_log = logging.getLogger(__name__)


class StepGraphs:
    """Calls a function on a CUDA device by replaying a graph; other devices, and a shape's first call, run it itself.

    The function works in place on tensors that stay where they are, never waits for the device, and returns a tensor.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        self.function, self.device = function, device
        self.can_capture = device.type == "cuda"
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, shape: Hashable) -> Tensor:
        """The function's result, valid until the next call; `shape` is all that the function's shapes depend on."""
        if shape in self._graphs:
            graph, result = self._graphs[shape]
            graph.replay()
            return result
        result = self.function()
        if self.can_capture:
            self._capture(shape)
        return result

    def _capture(self, shape: Hashable) -> None:
        """Record the function, which does not run it; it ran just before, so that libraries have what they need."""
        free = free_memory_bytes(self.device) or 0
        if free < GRAPH_BYTES:
            self._give_up(f"{memory_text(free)} of GPU memory is free, graphs want {memory_text(GRAPH_BYTES)}")
            return
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        try:
            with torch.cuda.graph(graph, pool=pool):
                result = self.function()
        except RuntimeError as error:
            self._give_up(str(error).splitlines()[0])
            return
        self._graphs[shape] = graph, result

    def _give_up(self, reason: str) -> None:
        self.can_capture = False
        _log.warning("no CUDA graph for this decode step, which makes it slower: %s", reason)

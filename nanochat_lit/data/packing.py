"""Best-fit packing of token lists into sequences of equal length, with token accounting.

    text           |bos doc A .......|bos doc C ..|bos doc F, cropped to fill|
    conversations  |bos chat A ......|bos chat C ....|bos chat B .|pad pad pad|

Both fill a sequence with the largest buffered item that still fits, the oldest of equals (see FitBuffer). If nothing
fits, text crops the shortest document to fill the sequence and discards the remainder; conversations are padded. The
order depends only on the items and the buffer. A packed sequence has one more token than the model's input, for the
targets. Items are numpy arrays, which are cheap to copy, send and checkpoint: of text the token ids, of conversations
two rows, token ids and loss mask.
"""

import bisect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from nanochat_lit.common.errors import UserError, check_at_least_one

_NOTHING = -1


@dataclass
class PackingCounts:
    """Token counts: `read + added == used + cropped` plus the buffer and, for text, the unfinished sequence."""

    items: int = 0  # number of documents or conversations read
    rows: int = 0  # number of sequences returned
    read: int = 0  # tokens of the items, before cropping and additions
    added: int = 0  # BOS tokens added to the later chunks of split documents
    used: int = 0  # tokens in the returned sequences, excluding padding
    cropped: int = 0  # tokens lost by cropping or truncation
    unfinished: int = 0  # tokens of the last, incomplete sequence of a finite stream, which is not returned
    padding: int = 0  # positions filled with padding
    items_cut: int = 0  # number of truncated conversations

    @property
    def lost(self) -> float:
        """Return the fraction of lost tokens; 0 before any token."""
        return self.cropped / max(1, self.used + self.cropped)


class FitBuffer:
    """Buffer of chunks of items sorted by length, then by age; removes the oldest of equals, or, if scattered, any.

    The scattered choice depends only on the number of earlier removals. It is for chunks of split documents: most have
    exactly the length of a sequence, so by age every batch would be a contiguous part of one document. (A fixed random
    key per item would not work, because items with late keys would accumulate in the buffer.)
    """

    def __init__(self, scatter: bool = False) -> None:
        # (length, arrival number, chunk); the number is unique, so chunks are never compared
        self._entries: list[tuple[int, int, np.ndarray]] = []
        # by arrival number, for items none of whose chunks was removed: first number, number of chunks, position
        self._whole: dict[int, tuple[int, int, list[int]]] = {}
        self._scatter = scatter
        self._num_added = 0
        self._num_popped = 0
        self.next_place: list[int] = []
        """Position in the source of the item that is added next."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, chunks: Sequence[np.ndarray]) -> None:
        """Add an item as one or several chunks."""
        item = (self._num_added, len(chunks), self.next_place)
        for chunk in chunks:
            bisect.insort(self._entries, (chunk.shape[-1], self._num_added, chunk))
            self._whole[self._num_added] = item
            self._num_added += 1

    def pop_largest(self, limit: int) -> np.ndarray | None:
        """Remove and return one of the longest chunks of at most `limit` length; None if there is none."""
        end = bisect.bisect_left(self._entries, (limit + 1,))  # a prefix tuple sorts before longer tuples
        if end == 0:
            return None
        longest = self._entries[end - 1][0]
        index = bisect.bisect_left(self._entries, (longest,), hi=end)
        if self._scatter:
            # Knuth's multiplicative hash; uses the upper bits, because the lower ones repeat.
            index += (self._num_popped * 0x9E3779B97F4A7C15 % 2**64) * (end - index) >> 64
        self._num_popped += 1
        return self._pop(index)

    def pop_shortest(self) -> np.ndarray:
        """Remove and return the oldest of the shortest chunks."""
        return self._pop(0)

    def places(self) -> torch.Tensor:
        """Return a row per item none of whose chunks was removed: first arrival number, number of chunks, position.

        Positions of different sources of a mixture differ in length; shorter ones are padded with _NOTHING.
        """
        rows = [[first, count, *place] for number, (first, count, place) in self._whole.items() if number == first]
        longest = max(map(len, rows), default=0)
        return torch.tensor([row + [_NOTHING] * (longest - len(row)) for row in rows], dtype=torch.int64)

    def load_places(self, places: torch.Tensor) -> None:
        """Restore `places`, after the state."""
        for (first, count, *_), place in zip(places.tolist(), places_of(places), strict=True):
            self._whole.update(dict.fromkeys(range(first, first + count), (first, count, place)))

    def state_dict(self) -> dict[str, Any]:
        """Return the chunks with their lengths and arrival numbers as a few tensors, which load faster than lists."""
        chunks = [chunk for _, _, chunk in self._entries]
        is_masked = bool(chunks) and chunks[0].ndim == 2
        columns = zip(*chunks, strict=True) if is_masked else [chunks]
        state = {
            "lengths": torch.tensor([length for length, _, _ in self._entries], dtype=torch.int64),
            "numbers": torch.tensor([number for _, number, _ in self._entries], dtype=torch.int64),
            "parts": [torch.from_numpy(np.concatenate(column or [np.zeros(0, np.int32)])) for column in columns],
            "is_masked": is_masked,
        }
        return {"items": state, "num_added": self._num_added, "num_popped": self._num_popped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        packed = state["items"]
        lengths, numbers = packed["lengths"].tolist(), packed["numbers"].tolist()
        columns = [np.split(part.numpy(), np.cumsum(lengths[:-1])) if lengths else [] for part in packed["parts"]]
        chunks = list(map(np.stack, zip(*columns, strict=True))) if packed["is_masked"] else columns[0]
        self._entries = list(zip(lengths, numbers, chunks, strict=True))
        self._num_added, self._num_popped = state["num_added"], state["num_popped"]

    def _pop(self, index: int) -> np.ndarray:
        _, number, chunk = self._entries.pop(index)
        first, count, _ = self._whole.get(number, (0, 0, []))
        for of_item in range(first, first + count):
            self._whole.pop(of_item, None)
        return chunk


def places_of(places: torch.Tensor) -> list[list[int]]:
    """Return the positions in `FitBuffer.places`."""
    return [[number for number in row[2:] if number != _NOTHING] for row in places.tolist()]


class PackedRows(ABC, Iterator[np.ndarray]):
    """Base class of packers; its state between two sequences is the buffer and the counts.

    Empty documents or conversations are dropped. A packed sequence has `row_len` tokens, the sequence length plus one.
    The buffer of `buffer_size` items to choose from is refilled before every choice; for `scatter` see `FitBuffer`.
    """

    def __init__(self, items: Iterable[Any], row_len: int, buffer_size: int, scatter: bool = False) -> None:
        if row_len < 2:
            raise UserError(f"a sequence of {row_len} tokens has no target; use a sequence length of at least 1")
        check_at_least_one(buffer_size=buffer_size)
        self.counts = PackingCounts()
        self.buffer = FitBuffer(scatter)
        self._items = iter(items)
        self._row_len = row_len
        self._buffer_size = buffer_size

    def state_dict(self) -> dict[str, Any]:
        """Return a state from which an iterator over the following items continues exactly."""
        return {"buffer": self.buffer.state_dict(), "counts": asdict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; the items must begin with the first unread one."""
        self.buffer.load_state_dict(state["buffer"])
        self.counts = PackingCounts(**state["counts"])

    def _fill_buffer(self) -> None:
        while len(self.buffer) < self._buffer_size and (item := next(self._items, None)) is not None:
            tokens = np.asarray(item)
            if tokens.size:
                self.counts.items += 1
                self.counts.read += tokens.shape[-1]
                self._add(tokens)

    @abstractmethod
    def _add(self, item: np.ndarray) -> None:
        """Add an item, or its chunks, to the buffer."""


class BestFitRows(PackedRows):
    """Packs documents, whose first token is BOS, into full sequences that begin with the BOS of a document.

    A last, incomplete sequence is counted as unfinished and not returned. `long_documents` 'crop' crops documents
    longer than a sequence and discards the remainder; 'split' first splits them into chunks of at most `row_len` tokens
    that each begin with BOS, and uses chunks of equal length in a scattered order.
    """

    def __init__(
        self,
        documents: Iterable[Any],
        row_len: int,
        buffer_size: int = 1000,
        long_documents: Literal["crop", "split"] = "crop",
    ) -> None:
        if long_documents not in ("crop", "split"):
            raise UserError(f"long_documents is {long_documents!r}; use 'crop' or 'split'")
        self._split = long_documents == "split"
        super().__init__(documents, row_len, buffer_size, scatter=self._split)

    def __next__(self) -> np.ndarray:
        pieces: list[np.ndarray] = []
        space = self._row_len
        while space:
            self._fill_buffer()
            if not len(self.buffer):
                self.counts.unfinished += self._row_len - space
                raise StopIteration
            piece = self.buffer.pop_largest(space)
            if piece is None:
                piece = self.buffer.pop_shortest()
                self.counts.cropped += len(piece) - space
                piece = piece[:space]
            pieces.append(piece)
            space -= len(piece)
        self.counts.rows += 1
        self.counts.used += self._row_len
        return np.concatenate(pieces)

    def _add(self, item: np.ndarray) -> None:
        pieces = split_document(item, self._row_len) if self._split else [item]
        self.counts.added += len(pieces) - 1
        self.buffer.add(pieces)


class PaddedRows(PackedRows):
    """Packs whole conversations, (token ids, loss mask), into sequences, padded with `pad_id` when nothing fits.

    Conversations longer than `row_len` are truncated and counted; the loss mask of padding is 0.
    """

    def __init__(self, conversations: Iterable[Any], row_len: int, pad_id: int, buffer_size: int = 1000) -> None:
        super().__init__(conversations, row_len, buffer_size)
        self._pad_id = pad_id

    def __next__(self) -> np.ndarray:
        row = np.zeros((2, self._row_len), np.int32)
        row[0] = self._pad_id
        used = 0
        while used < self._row_len:
            self._fill_buffer()
            conversation = self.buffer.pop_largest(self._row_len - used)
            if conversation is None:
                break
            end = used + conversation.shape[1]
            row[:, used:end] = conversation
            used = end
        if not used:
            raise StopIteration
        self.counts.rows += 1
        self.counts.used += used
        self.counts.padding += self._row_len - used
        return row

    def _add(self, item: np.ndarray) -> None:
        kept = item[:, : self._row_len]
        num_cut = item.shape[1] - kept.shape[1]
        self.counts.items_cut += num_cut > 0
        self.counts.cropped += num_cut
        self.buffer.add([kept])


def split_document(token_ids: np.ndarray, max_len: int) -> list[np.ndarray]:
    """Split a document into chunks of at most `max_len` tokens that each begin with its first token (BOS)."""
    if len(token_ids) <= max_len:
        return [token_ids]
    bos = token_ids[:1]
    starts = range(1, len(token_ids), max_len - 1)
    return [np.concatenate((bos, token_ids[start : start + max_len - 1])) for start in starts]

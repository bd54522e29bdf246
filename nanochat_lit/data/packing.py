"""Packing token lists into rows of one length: best fit, every token accounted for.

    text           |bos doc A .......|bos doc C ..|bos doc F, cropped to fill|
    conversations  |bos chat A ......|bos chat C ....|bos chat B .|pad pad pad|

Both fill a row with the largest buffered item that still fits, the oldest of equals (see FitBuffer). When nothing fits, text crops the
shortest document to fill the row (the rest of it is lost: better than padding where text is plenty), conversations
are padded. The order of the rows depends on the items and the buffer alone. A row has one token more than the model's
sequence, for the targets. Documents and rows of text are numpy arrays, so that they cost little to copy, to send from a
worker and to keep in a checkpoint; conversations are short and come as lists.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from nanochat_lit.common.errors import UserError

Item = TypeVar("Item")
Row = TypeVar("Row")
Tokens = np.ndarray
"""Token ids of a document or a row, one dimension, any type of integer."""
PaddedRow = tuple[list[int], list[int]]
"""Token ids and loss mask, both of the row's length."""
Masked = tuple[list[int], list[int]]


@dataclass
class PackingCounts:
    """Where the tokens went: `read + added == used + cropped` plus the buffer and, for text, the unfinished row."""

    items: int = 0
    """Documents or conversations taken in."""
    rows: int = 0
    """Rows given out."""
    read: int = 0
    """Tokens of the items, before anything is cut or added."""
    added: int = 0
    """BOS tokens put before the later pieces of a document that was split."""
    used: int = 0
    """Tokens in the rows given out, padding not counted."""
    cropped: int = 0
    """Tokens lost by cropping or cutting."""
    unfinished: int = 0
    """Tokens of the last row of a finite stream, which did not become full and is not given out."""
    padding: int = 0
    """Positions filled with padding."""
    items_cut: int = 0
    """Conversations longer than a row, cut at the row."""

    @property
    def lost(self) -> float:
        """Share of the tokens so far that were cropped or cut off; 0 before there are any."""
        return self.cropped / max(1, self.used + self.cropped)


class FitBuffer(Generic[Item]):
    """Items sorted by length, then by age; among equals the oldest goes out first, or any when scattered.

    Scattered means a choice that looks random but depends only on how many went out before. It is for the pieces of
    split documents: most of them are exactly as long as a row, so by age every batch would be one stretch of one
    document. (A fixed random place per item would not do: late places would fill the buffer and stay.)
    """

    def __init__(self, scatter: bool = False) -> None:
        # length, number of arrival, item; the number is unique, so items are never compared
        self._entries: list[tuple[int, int, Item]] = []
        self._scatter = scatter
        self._num_added = 0
        self._num_popped = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_added(self) -> int:
        """Items so far, which is the number under which the next will arrive."""
        return self._num_added

    def numbers(self) -> list[int]:
        """Under which numbers the items have arrived that are here."""
        return [number for _, number, _ in self._entries]

    def add(self, item: Item, length: int) -> None:
        """Put in an item, the youngest so far."""
        bisect.insort(self._entries, (length, self._num_added, item))
        self._num_added += 1

    def pop_largest(self, limit: int) -> Item | None:
        """Take out one of the longest items that are at most `limit` long; None if there is none."""
        end = bisect.bisect_left(self._entries, (limit + 1,))  # a tuple is smaller than those that it begins
        if end == 0:
            return None
        longest = self._entries[end - 1][0]
        index = bisect.bisect_left(self._entries, (longest,), hi=end)
        if self._scatter:
            # Knuth's multiplicative hash; the upper bits, because the lower ones repeat.
            index += (self._num_popped * 0x9E3779B97F4A7C15 % 2**64) * (end - index) >> 64
        self._num_popped += 1
        return self._entries.pop(index)[2]

    def pop_shortest(self) -> Item:
        """Take out the oldest of the shortest items."""
        return self._entries.pop(0)[2]

    def state_dict(self) -> dict[str, Any]:
        """The items with their lengths and numbers of arrival."""
        return {"items": list(map(list, self._entries)), "num_added": self._num_added, "num_popped": self._num_popped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the buffer that gave `state`."""
        self._entries = [(length, number, item) for length, number, item in state["items"]]
        self._num_added, self._num_popped = state["num_added"], state["num_popped"]


class PackedRows(Iterator[Row], Generic[Item, Row]):
    """Rows made of items in a buffer, which a subclass fills and empties. Between two rows its state is the buffer and the counts."""

    def __init__(self, items: Iterable[Any], row_len: int, buffer_size: int, scatter: bool = False) -> None:
        if row_len < 2:
            raise UserError(f"a row of {row_len} tokens has no target; use a sequence length of at least 1")
        if buffer_size < 1:
            raise UserError(f"buffer_size is {buffer_size}, but must be at least 1")
        self.counts = PackingCounts()
        self.buffer: FitBuffer[Item] = FitBuffer(scatter)
        self._items = iter(items)
        self._row_len = row_len
        self._buffer_size = buffer_size

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and arrays from which an iterator over the following items continues exactly."""
        return {"buffer": self.buffer.state_dict(), "counts": asdict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state; the items must begin with the first that was not read then."""
        self.buffer.load_state_dict(state["buffer"])
        self.counts = PackingCounts(**state["counts"])

    def _fill_buffer(self) -> None:
        while len(self.buffer) < self._buffer_size:
            item = next(self._items, None)
            if item is None:
                return
            self._take(item)

    def _take(self, item: Any) -> None:
        """Count an item and put it, or what is made of it, into the buffer."""
        raise NotImplementedError


class BestFitRows(PackedRows[Tokens, Tokens]):
    """Packs documents into full rows, each of which begins with the BOS of a document.

    A last row that does not become full is counted as unfinished and not given out.

    Args:
        documents: Token ids, each beginning with BOS.
        row_len: Tokens in a row: the sequence length and one.
        buffer_size: Documents to choose from; the buffer is topped up before every choice.
        long_documents: 'crop': a document longer than a row can only be used by cropping, its rest is lost. 'split':
            it is first cut into pieces of at most `row_len` tokens that each begin with BOS again, and pieces of
            equal length are used in a scattered order.
    """

    def __init__(
        self,
        documents: Iterable[Tokens | Sequence[int]],
        row_len: int,
        buffer_size: int = 1000,
        long_documents: Literal["crop", "split"] = "crop",
    ) -> None:
        if long_documents not in ("crop", "split"):
            raise UserError(f"long_documents is {long_documents!r}; use 'crop' or 'split'")
        self._split = long_documents == "split"
        super().__init__(documents, row_len, buffer_size, scatter=self._split)

    def __next__(self) -> Tokens:
        pieces: list[Tokens] = []
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

    def _take(self, item: Tokens | Sequence[int]) -> None:
        if not len(item):
            return
        self.counts.items += 1
        self.counts.read += len(item)
        tokens = np.asarray(item)
        pieces = split_document(tokens, self._row_len) if self._split else [tokens]
        self.counts.added += len(pieces) - 1
        for piece in pieces:
            self.buffer.add(piece, len(piece))


class PaddedRows(PackedRows[Masked, PaddedRow]):
    """Packs conversations whole into rows, and pads a row when nothing fits any more.

    Args:
        conversations: Token ids and loss mask of each, equally long.
        row_len: Tokens in a row: the sequence length and one. A longer conversation is cut here, and counted.
        pad_id: Token for the padding; its loss mask is 0.
        buffer_size: Conversations to choose from; the buffer is topped up before every choice.
    """

    def __init__(self, conversations: Iterable[Masked], row_len: int, pad_id: int, buffer_size: int = 1000) -> None:
        super().__init__(conversations, row_len, buffer_size)
        self._pad_id = pad_id

    def __next__(self) -> PaddedRow:
        token_ids: list[int] = []
        loss_mask: list[int] = []
        while len(token_ids) < self._row_len:
            self._fill_buffer()
            conversation = self.buffer.pop_largest(self._row_len - len(token_ids))
            if conversation is None:
                break
            token_ids += conversation[0]
            loss_mask += conversation[1]
        if not token_ids:
            raise StopIteration
        padding = self._row_len - len(token_ids)
        self.counts.rows += 1
        self.counts.used += len(token_ids)
        self.counts.padding += padding
        return token_ids + [self._pad_id] * padding, loss_mask + [0] * padding

    def _take(self, item: Masked) -> None:
        token_ids, loss_mask = item
        if not token_ids:
            return
        self.counts.items += 1
        self.counts.read += len(token_ids)
        if len(token_ids) > self._row_len:
            self.counts.items_cut += 1
            self.counts.cropped += len(token_ids) - self._row_len
            token_ids, loss_mask = token_ids[: self._row_len], loss_mask[: self._row_len]
        self.buffer.add((token_ids, loss_mask), len(token_ids))


def split_document(token_ids: Tokens, max_len: int) -> list[Tokens]:
    """Cut a document into pieces of at most `max_len` tokens, each beginning with the document's first token (BOS)."""
    if len(token_ids) <= max_len:
        return [token_ids]
    bos = token_ids[:1]
    starts = range(1, len(token_ids), max_len - 1)
    return [np.concatenate((bos, token_ids[start : start + max_len - 1])) for start in starts]

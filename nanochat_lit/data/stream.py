"""Streams of batches: source -> token ids -> packed sequences -> {"inputs", "targets"}, each (B, T) int64."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.data.cursor import Cursor
from nanochat_lit.data.packing import BestFitRows, PackedRows, PackingCounts, PaddedRows, places_of
from nanochat_lit.data.prepared import ENCODE_BATCH_SIZE, batched, check_tokenizer, encoded_documents
from nanochat_lit.data.shards import VALIDATION_FRACTION, Column, FileSource, text_column
from nanochat_lit.data.source import CallableSource, SplitSource, TextSource
from nanochat_lit.model.loss_kernel import IGNORE_INDEX
from nanochat_lit.tokenizer.chat import render_conversation

if TYPE_CHECKING:
    from nanochat_lit.tokenizer import Tokenizer

Batch = dict[str, torch.Tensor]
SourceLike = TextSource | Callable[[], Iterable[Any]] | Sequence[Any] | str | Path
ENCODE_BATCH_CHARS = 20_000
"""Maximum number of characters per tokenizer call; more would produce batches in bursts and stall training."""
_log = logging.getLogger(__name__)


def as_source(items: SourceLike, column: Column = "text", seed: int = 0) -> TextSource:
    """Convert a path, a function without arguments, or a list to a source; the last 1% of a list is for validation."""
    if isinstance(items, (str, Path)):
        return FileSource(items, column, seed)
    if isinstance(items, TextSource):
        return items
    if callable(items):
        return CallableSource(items)
    if not isinstance(items, Sequence):
        kinds = "a path, a list, a function that returns an iterator, or a source"
        raise UserError(f"cannot read from {type(items).__name__}; give {kinds}")
    if not items:
        raise UserError("the list of items is empty; give at least one")
    num_train = len(items) - max(1, int(len(items) * VALIDATION_FRACTION))
    return SplitSource(items[:num_train], items[num_train:], seed)


class PackedStream(IterableDataset[Batch]):
    """Base class of streams: a cursor over a source, a packer, and their state.

    The train split is endless; other splits are finite and deterministic, and their last batch may be smaller. Each
    DataLoader worker reads its own share.

    Args:
        source: Source of the items.
        tokenizer: Tokenizer of the items.
        sequence_len: T; packed sequences have one more token.
        micro_batch_size: B, sequences per batch; does not affect the sequences or their order.
        split: 'train', 'val' or 'all' of the source.
        rank: Rank of this process; ranks read disjoint items.
        world_size: Number of processes.
        buffer_size: Number of items that best fit chooses from.
    """

    def __init__(
        self,
        source: TextSource,
        *,
        tokenizer: "Tokenizer",
        sequence_len: int,
        micro_batch_size: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 1000,
    ) -> None:
        check_at_least_one(sequence_len=sequence_len, micro_batch_size=micro_batch_size)
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")
        self.source = source
        self.tokenizer = tokenizer
        self.sequence_len = sequence_len
        self.micro_batch_size = micro_batch_size
        self.split = split
        self.rank = rank
        self.world_size = world_size
        self.buffer_size = buffer_size
        self.reader_shift = 0
        """Offset of the DataLoader worker numbers; see `ResumableLoader`."""
        self._cursor: Cursor | None = None
        self._rows: PackedRows | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def counts(self) -> PackingCounts:
        """Token counts of the current iteration in this process."""
        return self._rows.counts if self._rows is not None else PackingCounts()

    @abstractmethod
    def packed(self, cursor: Cursor) -> PackedRows:
        """Return a packer of the cursor's items."""

    @abstractmethod
    def batch_of(self, rows: np.ndarray) -> Batch:
        """Return the batch of stacked sequences."""

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch_of, self.rows())

    def rows(self) -> Iterator[np.ndarray]:
        """Start an iteration, at the position of a loaded state; yield the stacked sequences of each batch.

        Workers send these: they have two or four bytes per token, a batch eight.
        """
        state, self._restored = self._restored, None
        rank, world_size = self._reader_share()
        self._cursor = self.source.cursor(self.split, rank, world_size)
        self._rows = self.packed(self._cursor)
        if state is not None:
            self._cursor.load_state_dict(state["cursor"])
            if state["packer"] is not None:
                self._rows.load_state_dict(state["packer"])
                self._rows.buffer.load_places(state["places"])
        return map(np.stack, batched(self._rows, self.micro_batch_size))

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch: the cursor, and the buffered documents by value and by position.

        With the values, the same readers resume without reading again, from any source: a thousand documents take 0.7
        MB if split at T 512, 5.2 MB whole. With the positions (50 KB), other readers can read the documents again.
        Covers only this process: with DataLoader workers, the state is in the workers.
        """
        if self._cursor is None or self._rows is None:
            return {}
        packer, places = self._rows.state_dict(), self._rows.buffer.places()
        return {"cursor": self._cursor.state_dict(), "packer": packer, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the next iteration from `state`, which needs the same source and settings (except batch size).

        A state whose packer is None starts at its cursor with an empty buffer.
        """
        self._restored = state or None

    def merge(self, states: Sequence[dict[str, Any]], num_readers: int) -> dict[str, Any]:
        """Return the state from which `num_readers` readers continue, given the states of all readers.

        Buffers are empty; unused documents in them are read again.
        """
        cursor = self.source.cursor(self.split, 0, 1)
        places = [place for state in states if state["packer"] for place in places_of(state["places"])]
        merged = cursor.merge([state["cursor"] for state in states], num_readers, places)
        return {"cursor": merged, "packer": None}

    def _reader_share(self) -> tuple[int, int]:
        worker = get_worker_info()
        if worker is None:
            return self.rank, self.world_size
        number = (worker.id + self.reader_shift) % worker.num_workers
        return self.rank * worker.num_workers + number, self.world_size * worker.num_workers

    def taken(self, cursor: Cursor) -> None:
        """Record that the cursor's next item enters the buffer."""
        assert self._rows is not None, "an iteration has begun"
        self._rows.buffer.next_place = cursor.take()


class PretrainStream(PackedStream):
    """Batches of densely packed text.

    Every training epoch has a different order, and the buffer spans epochs. Finite splits drop an incomplete last
    sequence (use `evaluate bpb` to evaluate all tokens).

    Args:
        texts: A path, also of prepared shards, a list, a function that returns an iterator, or a source.
        seed: Seed of the order of training epochs, if `texts` is a path or a list.
        long_documents: Treatment of documents longer than a sequence; see `BestFitRows`.
        options: Options of `PackedStream`.
    """

    def __init__(
        self, *, texts: SourceLike, seed: int = 0, long_documents: Literal["crop", "split"] = "crop", **options: Any
    ) -> None:
        source = as_source(texts, text_column(texts), seed)
        super().__init__(source, **options)
        if isinstance(source, FileSource) and source.column == "tokens":
            check_tokenizer(source.path, self.tokenizer)
        self.long_documents: Literal["crop", "split"] = long_documents

    def batch_of(self, rows: np.ndarray) -> Batch:
        """Return the batch of sequences of T + 1 tokens, (B, T + 1)."""
        tokens = torch.from_numpy(rows.astype(np.int64))
        return {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    def packed(self, cursor: Cursor) -> BestFitRows:
        """Return a best-fit packer."""
        return BestFitRows(self._documents(cursor), self.sequence_len + 1, self.buffer_size, self.long_documents)

    def _documents(self, cursor: Cursor) -> Iterator[np.ndarray]:
        for items in _small_batches(cursor):
            # documents of prepared shards are already tokenized
            documents = items if isinstance(items[0], np.ndarray) else encoded_documents(self.tokenizer, items)
            for document in documents:
                self.taken(cursor)
                yield document


class ChatStream(PackedStream):
    """Batches of conversations, packed whole and padded, with target -1 for untrained tokens.

    Conversations longer than a sequence are truncated and counted in `counts.items_cut`. In the first iteration, a
    warning is logged at the first truncation, and one with the total at the end of a finite split.

    Args:
        conversations: A path, a list, a function that returns an iterator, or a source.
        seed: Seed of the order of training epochs, if `conversations` is a path or a list.
        names: Values of "source" in the conversations; None does not distinguish them. With names, batches also have
            "sources", (B, T) uint8: 0 for untrained tokens, k for targets of the k-th name.
        options: Options of `PackedStream`.
    """

    def __init__(
        self, *, conversations: SourceLike, seed: int = 0, names: Sequence[str] | None = None, **options: Any
    ) -> None:
        super().__init__(as_source(conversations, "messages", seed), **options)
        self.numbers = None if names is None else {name: number for number, name in enumerate(names, start=1)}
        self._has_warned = False

    def rows(self) -> Iterator[np.ndarray]:
        """As in `PackedStream`."""
        warn, self._has_warned = not self._has_warned, True  # validation iterates over the same stream repeatedly
        return self._warned_of(super().rows(), warn)

    def batch_of(self, rows: np.ndarray) -> Batch:
        """Return the batch of token ids and loss masks, (B, 2, T + 1)."""
        tokens = torch.from_numpy(rows[:, 0].astype(np.int64))
        sources = torch.from_numpy(rows[:, 1, 1:].astype(np.uint8))
        targets = tokens[:, 1:].masked_fill(sources == 0, IGNORE_INDEX)
        batch = {"inputs": tokens[:, :-1].contiguous(), "targets": targets}
        return batch if self.numbers is None else {**batch, "sources": sources}

    def packed(self, cursor: Cursor) -> PaddedRows:
        """Return packed and padded sequences."""
        return PaddedRows(self._rendered(cursor), self.sequence_len + 1, self.tokenizer.bos_id, self.buffer_size)

    def _rendered(self, cursor: Cursor) -> Iterator[np.ndarray]:
        for conversation in cursor:
            self.taken(cursor)
            rendered = np.array(render_conversation(self.tokenizer, conversation), np.int32)
            if self.numbers is not None:
                rendered[1] *= self.numbers[conversation["source"]]
            yield rendered

    def _warned_of(self, rows: Iterator[np.ndarray], warn: bool) -> Iterator[np.ndarray]:
        is_first = True
        for batch in rows:
            if warn and is_first and self.counts.items_cut:
                is_first = False
                _log.warning("conversations longer than sequence_len %d are truncated", self.sequence_len)
            yield batch
        if warn and self.counts.items_cut:
            _log.warning(
                "%d of %d conversations were truncated to sequence_len %d, %d tokens lost",
                *(self.counts.items_cut, self.counts.items, self.sequence_len, self.counts.cropped),
            )


def _small_batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield lists of up to ENCODE_BATCH_SIZE items and about ENCODE_BATCH_CHARS characters (or tokens)."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item)
        if size >= ENCODE_BATCH_CHARS or len(batch) == ENCODE_BATCH_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""Text as batches for pretraining: source -> tokens -> best-fit rows -> {"inputs", "targets"}, each (B, T) int64."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.packing import BestFitRows, PackingCounts, best_fit_rows
from nanochat_lit.data.sources import Source, SourceLike, as_source

if TYPE_CHECKING:
    from nanochat_lit.tokenizer import Tokenizer

Batch = dict[str, torch.Tensor]
ENCODE_BATCH_SIZE = 128


class PretrainStream(IterableDataset[Batch]):
    """Batches of densely packed text.

    The train split is endless: every epoch reads the source again in another order, and documents flow from one epoch
    into the next through the buffer. Other splits are finite and the same each time; their last batch may have fewer
    rows, and an unfinished last row is left out (compare models by `evaluate bpb`, which leaves nothing out).
    The rows and their order do not depend on `micro_batch_size`. With DataLoader workers each reads its own share.

    Args:
        texts: A path, a list, a function that makes an iterator, or an object with `iterate`; see `as_source`.
        tokenizer: Encodes the texts.
        sequence_len: T; rows hold one token more.
        micro_batch_size: B, rows in a batch.
        split: 'train', 'val' or 'all' of the source.
        seed: Order of the training epochs, when `texts` is a path or a list.
        rank: This process among `world_size`; they read disjoint documents.
        world_size: Number of processes.
        buffer_size: Documents that best fit chooses from.
        long_documents: What becomes of documents longer than a row; see `best_fit_rows`.
    """

    def __init__(
        self,
        *,
        texts: SourceLike,
        tokenizer: "Tokenizer",
        sequence_len: int,
        micro_batch_size: int,
        split: str = "train",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 1000,
        long_documents: Literal["crop", "split"] = "crop",
    ) -> None:
        check_stream_sizes(sequence_len, micro_batch_size, rank, world_size)
        self.source = as_source(texts, "text", seed)
        self.tokenizer = tokenizer
        self.sequence_len = sequence_len
        self.micro_batch_size = micro_batch_size
        self.split = split
        self.rank = rank
        self.world_size = world_size
        self.buffer_size = buffer_size
        self.long_documents: Literal["crop", "split"] = long_documents
        self.reader_shift = 0
        """By how much the numbers of DataLoader workers are shifted, see `ResumableLoader`."""
        self._cursor: ItemCursor | None = None
        self._rows: BestFitRows | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def counts(self) -> PackingCounts:
        """Where the tokens went in the current iteration of this process."""
        return self._rows.counts if self._rows is not None else PackingCounts()

    def __iter__(self) -> Iterator[Batch]:
        state, self._restored = self._restored, None
        rank, world_size = reader_share(self.rank, self.world_size, self.reader_shift)
        self._cursor = ItemCursor(self.source, self.split, rank, world_size)
        self._rows = best_fit_rows(
            self._token_lists(self._cursor), self.sequence_len + 1, self.buffer_size, self.long_documents
        )
        if state is not None:
            self._cursor.load_state_dict(state["cursor"])
            if state["packer"] is not None:
                self._rows.load_state_dict(state["packer"])
        while rows := list(islice(self._rows, self.micro_batch_size)):
            tokens = torch.tensor(rows, dtype=torch.int64)  # (B, T + 1)
            yield {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands after the last batch: the cursor, and the buffered documents by value.

        Of this process only: with DataLoader workers the state lives in the workers.
        """
        if self._cursor is None or self._rows is None:
            return {}
        return {"cursor": self._cursor.state_dict(), "packer": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration continues from `state`, made with the same source and settings (batch size excepted).

        A state whose packer is None begins at its cursor with an empty buffer.
        """
        self._restored = state or None

    def _token_lists(self, cursor: "ItemCursor") -> Iterator[list[int]]:
        bos_id = self.tokenizer.bos_id
        for texts in batched(cursor, ENCODE_BATCH_SIZE):
            for token_ids in self.tokenizer.encode_batch(texts):
                cursor.num_taken += 1
                yield [bos_id, *token_ids]


class ItemCursor:
    """Items of a source over the epochs, with the place that has been reached.

    `num_taken` is advanced by the reader, when an item has gone into its buffer: items that were only read ahead are
    read again after a resume.
    """

    def __init__(self, source: Source, split: str, rank: int, world_size: int) -> None:
        self._source = source
        self._split = split
        self._rank = rank
        self._world_size = world_size
        self._start_epoch = 0
        self._start_item = 0
        self._ends: list[int] = []  # items after which epochs ended that nobody has passed yet
        self.num_taken = 0

    def __iter__(self) -> Iterator[Any]:
        epoch = self._start_epoch
        num_read = 0
        while True:
            items = self._source.iterate(self._split, epoch, self._rank, self._world_size)
            first = next(items, None)
            if first is None:
                self._nothing_to_read()
            skip = self._start_item if epoch == self._start_epoch else 0
            num_read -= skip
            for index, item in enumerate(chain([first], items)):
                num_read += 1
                if index >= skip:
                    yield item
            if self._split != "train":
                return
            self._ends.append(num_read)
            epoch += 1

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of this reader's items of it have been taken."""
        passed = [end for end in self._ends if end <= self.num_taken]
        if passed:
            return {"epoch": self._start_epoch + len(passed), "item": self.num_taken - passed[-1]}
        return {"epoch": self._start_epoch, "item": self._start_item + self.num_taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration at the place of `state`."""
        self._start_epoch, self._start_item = state["epoch"], state["item"]

    def _nothing_to_read(self) -> None:
        raise UserError(
            f"the {self._split} split has no item for reader {self._rank} of {self._world_size} "
            "(processes times DataLoader workers); give more documents or use fewer readers"
        )


def reader_share(rank: int, world_size: int, shift: int = 0) -> tuple[int, int]:
    """This reader's number and the number of readers, when every rank may have several DataLoader workers."""
    worker = get_worker_info()
    if worker is None:
        return rank, world_size
    number = (worker.id + shift) % worker.num_workers
    return rank * worker.num_workers + number, world_size * worker.num_workers


def check_stream_sizes(sequence_len: int, micro_batch_size: int, rank: int, world_size: int) -> None:
    """Raise UserError for sizes that cannot be."""
    for name, value in (("sequence_len", sequence_len), ("micro_batch_size", micro_batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}, but must be at least 1")
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")


def batched(items: Iterator[Any] | ItemCursor, size: int) -> Iterator[list[Any]]:
    """Lists of up to `size` items (itertools.batched needs Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch

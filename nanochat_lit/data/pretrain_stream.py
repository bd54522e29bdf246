"""Text as batches for pretraining: source -> tokens -> best-fit rows -> {"inputs", "targets"}, each (B, T) int64."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.cursor import Cursor, Source
from nanochat_lit.data.encoding import batched, encoded_documents, small_batches
from nanochat_lit.data.packing import BestFitRows, FitBuffer, PackedRows, PackingCounts, Tokens
from nanochat_lit.data.prepared import check_tokenizer
from nanochat_lit.data.shards import FileSource, text_column
from nanochat_lit.data.sources import SourceLike, as_source, make_cursor

if TYPE_CHECKING:
    from nanochat_lit.tokenizer import Tokenizer

Batch = dict[str, torch.Tensor]


_PRUNE_AT = 20_000
_NOTHING = -1


class BufferedPlaces:
    """Places of documents by the numbers under which their pieces have arrived in the buffer.

    A document that is split has several pieces; once one of them has been used, its position is not given again.
    """

    def __init__(self, buffer: FitBuffer[Any]) -> None:
        self._buffer = buffer
        self._entries: list[tuple[int, list[int]]] = []  # first number, place
        self._counts: dict[int, int] = {}  # of pieces, by the first number, for documents of before a resume

    def add(self, place: Sequence[int]) -> None:
        """Take note that the next document to arrive comes from here."""
        if len(self._entries) >= _PRUNE_AT:
            kept = self._whole()
            self._entries = [(first, place) for first, _, place in kept]
            self._counts = {first: count for first, count, _ in kept}
        self._entries.append((self._buffer.num_added, list(place)))

    def state(self) -> torch.Tensor:
        """First number, number of pieces and place of each document of which nothing has been used; a row each.

        Places of different sources of a mixture differ in length: shorter ones end in _NOTHING.
        """
        rows = [[first, count, *place] for first, count, place in self._whole()]
        longest = max(map(len, rows), default=0)
        return torch.tensor([row + [_NOTHING] * (longest - len(row)) for row in rows], dtype=torch.int64)

    def load(self, state: torch.Tensor) -> None:
        """Become what gave `state`."""
        self._entries = [(row[0], _place(row)) for row in state.tolist()]
        self._counts = {first: count for first, count, *_ in state.tolist()}

    def _whole(self) -> list[tuple[int, int, list[int]]]:
        if not self._entries:
            return []
        there = set(self._buffer.numbers())
        following = [first for first, _ in self._entries[1:]] + [self._buffer.num_added]
        found = []
        for (first, place), after in zip(self._entries, following, strict=True):
            count = self._counts.get(first, after - first)
            if count and all(number in there for number in range(first, first + count)):
                found.append((first, count, place))
        return found


def places_of(states: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The places in the states of streams, of all readers."""
    return [_place(row) for state in states if state["places"].numel() for row in state["places"].tolist()]


def _place(row: Sequence[int]) -> list[int]:
    return [number for number in row[2:] if number != _NOTHING]


class PackedStream(IterableDataset[Batch]):
    """What streams of text and of conversations share: a cursor over a source, rows packed of its items, and their state.

    The train split is endless; other splits are finite and the same each time, their last batch may have fewer rows.
    With DataLoader workers each reads its own share.

    Args:
        source: Gives the items.
        tokenizer: Encodes them.
        sequence_len: T; rows hold one token more.
        micro_batch_size: B, rows in a batch; rows and their order do not depend on it.
        split: 'train', 'val' or 'all' of the source.
        rank: This process among `world_size`; they read disjoint items.
        world_size: Number of processes.
        buffer_size: Items that best fit chooses from.
    """

    def __init__(
        self,
        source: Source,
        *,
        tokenizer: "Tokenizer",
        sequence_len: int,
        micro_batch_size: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 1000,
    ) -> None:
        for name, value in (("sequence_len", sequence_len), ("micro_batch_size", micro_batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}, but must be at least 1")
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
        """By how much the numbers of DataLoader workers are shifted, see `ResumableLoader`."""
        self._cursor: Cursor | None = None
        self._places: BufferedPlaces
        self._rows: PackedRows[Any, Any] | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def counts(self) -> PackingCounts:
        """Where the tokens went in the current iteration of this process."""
        return self._rows.counts if self._rows is not None else PackingCounts()

    def packed(self, cursor: Cursor) -> PackedRows[Any, Any]:
        """Rows of what the cursor gives."""
        raise NotImplementedError

    def begin(self) -> Iterator[list[Any]]:
        """Start an iteration, at the place of a state that was loaded; the rows of each batch."""
        state, self._restored = self._restored, None
        rank, world_size = reader_share(self.rank, self.world_size, self.reader_shift)
        self._cursor = make_cursor(self.source, self.split, rank, world_size)
        self._rows = self.packed(self._cursor)
        self._places = BufferedPlaces(self._rows.buffer)
        if state is not None:
            self._cursor.load_state_dict(state["cursor"])
            if state["packer"] is not None:
                self._rows.load_state_dict(state["packer"])
                self._places.load(state["places"])
        return batched(self._rows, self.micro_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands after the last batch: the cursor, and the buffered documents by value and by place.

        By value the same readers go on without reading or encoding again, and from any source, also one that gives its
        documents one after the other: a thousand documents are 0.7 MB when split at T 512, 5.2 MB whole. The places
        (50 KB) are for other readers, which read the documents again.
        Of this process only: with DataLoader workers the state lives in the workers.
        """
        if self._cursor is None or self._rows is None:
            return {}
        return {
            "cursor": self._cursor.state_dict(),
            "packer": self._rows.state_dict(),
            "places": self._places.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration continues from `state`, made with the same source and settings (batch size excepted).

        A state whose packer is None begins at its cursor with an empty buffer.
        """
        self._restored = state or None

    def merge(self, states: Sequence[dict[str, Any]], num_readers: int) -> dict[str, Any]:
        """The state from which `num_readers` readers go on, by those of all readers so far.

        Buffers are empty; what lay in them and was not used at all will be read again.
        """
        cursor = make_cursor(self.source, self.split, 0, 1)
        merged = cursor.merge([state["cursor"] for state in states], num_readers, places_of(states))
        return {"cursor": merged, "packer": None}

    def taken(self, cursor: Cursor) -> None:
        """Take note that the cursor's next item goes into the buffer."""
        cursor.num_taken += 1
        self._places.add(cursor.last_place())


class PretrainStream(PackedStream):
    """Batches of densely packed text.

    Every training epoch reads the source again in another order, and documents flow from one epoch into the next through
    the buffer. Finite splits leave out an unfinished last row (compare models by `evaluate bpb`, which leaves nothing out).

    Args:
        texts: A path, a list, a function that makes an iterator, or an object with `iterate`; see `as_source`. The path
            may be a folder of prepared shards.
        seed: Order of the training epochs, when `texts` is a path or a list.
        long_documents: What becomes of documents longer than a row; see `BestFitRows`.
        options: Of `PackedStream`.
    """

    def __init__(
        self,
        *,
        texts: SourceLike,
        seed: int = 0,
        long_documents: Literal["crop", "split"] = "crop",
        **options: Any,
    ) -> None:
        source = as_source(texts, text_column(texts), seed)
        super().__init__(source, **options)
        if isinstance(source, FileSource) and source.column == "tokens":
            check_tokenizer(source.path, self.tokenizer)
        self.long_documents: Literal["crop", "split"] = long_documents

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch_of, self.rows())

    @staticmethod
    def batch_of(rows: np.ndarray) -> Batch:
        """The batch of rows of T + 1 tokens."""
        tokens = torch.from_numpy(rows.astype(np.int64))
        return {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    def rows(self) -> Iterator[np.ndarray]:
        """The batches as rows, (B, T + 1) of two or four bytes a token: what workers send."""
        return map(np.stack, self.begin())

    def packed(self, cursor: Cursor) -> BestFitRows:
        """Rows filled by best fit."""
        return BestFitRows(self._documents(cursor), self.sequence_len + 1, self.buffer_size, self.long_documents)

    def _documents(self, cursor: Cursor) -> Iterator[Tokens]:
        """Token ids of the documents, each from BOS on."""
        for items in small_batches(cursor):
            # prepared shards have documents of tokens already
            documents = items if isinstance(items[0], np.ndarray) else encoded_documents(self.tokenizer, items)
            for document in documents:
                self.taken(cursor)
                yield document


def reader_share(rank: int, world_size: int, shift: int = 0) -> tuple[int, int]:
    """This reader's number and the number of readers, when every rank may have several DataLoader workers."""
    worker = get_worker_info()
    if worker is None:
        return rank, world_size
    number = (worker.id + shift) % worker.num_workers
    return rank * worker.num_workers + number, world_size * worker.num_workers

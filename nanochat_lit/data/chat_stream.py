"""Conversations as batches for fine-tuning: rendered, packed whole, padded; targets -1 where nothing is to be learned."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from nanochat_lit.data.buffered_places import BufferedPlaces, places_of
from nanochat_lit.data.cursor import Cursor
from nanochat_lit.data.packing import Masked, PackingCounts, PaddedRows, padded_rows
from nanochat_lit.data.pretrain_stream import Batch, check_stream_sizes, reader_share
from nanochat_lit.data.sources import SourceLike, as_source, make_cursor
from nanochat_lit.tokenizer.chat import render_conversation

if TYPE_CHECKING:
    from nanochat_lit.tokenizer import Tokenizer

IGNORE_INDEX = -1
"""The model's value for targets that do not count; repeated here because data does not import model."""
_log = logging.getLogger(__name__)


class ChatStream(IterableDataset[Batch]):
    """Batches of conversations.

    The train split is endless, other splits finite and the same each time (the last batch may have fewer rows).
    A conversation longer than the row is cut at the row; `counts.items_cut` has the number, and one warning is logged
    when it happens first and one with the total when a finite split ends, in the first iteration only.

    Args:
        conversations: A path, a list, a function that makes an iterator, or an object with `iterate`.
        tokenizer: Renders the conversations.
        sequence_len: T; rows hold one token more.
        micro_batch_size: B, rows in a batch.
        split: 'train', 'val' or 'all' of the source.
        seed: Order of the training epochs, when `conversations` is a path or a list.
        rank: This process among `world_size`; they read disjoint conversations.
        world_size: Number of processes.
        buffer_size: Conversations that best fit chooses from.
        names: Where conversations may come from, as their "source" says; None does not keep apart. With names, batches
            have "sources" too, (B, T) uint8: 0 where nothing is to be learned, k where the target is of the k-th name.
    """

    def __init__(
        self,
        *,
        conversations: SourceLike,
        tokenizer: "Tokenizer",
        sequence_len: int,
        micro_batch_size: int,
        split: str = "train",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 1000,
        names: Sequence[str] | None = None,
    ) -> None:
        check_stream_sizes(sequence_len, micro_batch_size, rank, world_size)
        self.source = as_source(conversations, "messages", seed)
        self.tokenizer = tokenizer
        self.sequence_len = sequence_len
        self.micro_batch_size = micro_batch_size
        self.split = split
        self.rank = rank
        self.world_size = world_size
        self.buffer_size = buffer_size
        self.numbers = None if names is None else {name: number for number, name in enumerate(names, start=1)}
        self.reader_shift = 0
        """By how much the numbers of DataLoader workers are shifted, see `ResumableLoader`."""
        self._has_warned = False
        self._cursor: Cursor | None = None
        self._places: BufferedPlaces
        self._rows: PaddedRows | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def counts(self) -> PackingCounts:
        """Where the tokens went in the current iteration of this process."""
        return self._rows.counts if self._rows is not None else PackingCounts()

    def __iter__(self) -> Iterator[Batch]:
        state, self._restored = self._restored, None
        rank, world_size = reader_share(self.rank, self.world_size, self.reader_shift)
        self._cursor = make_cursor(self.source, self.split, rank, world_size)
        row_len = self.sequence_len + 1
        self._rows = padded_rows(self._rendered(self._cursor), row_len, self.tokenizer.bos_id, self.buffer_size)
        self._places = BufferedPlaces(self._rows.buffer)
        if state is not None:
            self._cursor.load_state_dict(state["cursor"])
            if state["packer"] is not None:
                self._rows.load_state_dict(state["packer"])
                self._places.load(state["places"])
        warn, self._has_warned = not self._has_warned, True  # validation reads the same stream again and again
        warned = False
        while rows := list(islice(self._rows, self.micro_batch_size)):
            if warn and self.counts.items_cut and not warned:
                warned = True
                _log.warning("conversations longer than sequence_len %d are cut there", self.sequence_len)
            tokens = torch.tensor([token_ids for token_ids, _ in rows], dtype=torch.int64)  # (B, T + 1)
            sources = torch.tensor([loss_mask for _, loss_mask in rows], dtype=torch.uint8)[:, 1:]
            targets = tokens[:, 1:].masked_fill(sources == 0, IGNORE_INDEX)
            batch = {"inputs": tokens[:, :-1].contiguous(), "targets": targets}
            yield batch if self.numbers is None else {**batch, "sources": sources.contiguous()}
        if warn and self.counts.items_cut:
            _log.warning(
                "%d of %d conversations were cut at sequence_len %d, %d tokens lost",
                *(self.counts.items_cut, self.counts.items, self.sequence_len, self.counts.cropped),
            )

    def rows(self) -> Iterator[Batch]:
        """The batches: what workers send."""
        return iter(self)

    @staticmethod
    def batch_of(rows: Batch) -> Batch:
        """The same."""
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands after the last batch; see `PretrainStream.state_dict`."""
        if self._cursor is None or self._rows is None:
            return {}
        return {
            "cursor": self._cursor.state_dict(),
            "packer": self._rows.state_dict(),
            "places": self._places.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration continues from `state`, made with the same source and settings (batch size excepted)."""
        self._restored = state or None

    def merge(self, states: Sequence[dict[str, Any]], num_readers: int) -> dict[str, Any]:
        """As `PretrainStream.merge`."""
        cursor = make_cursor(self.source, self.split, 0, 1)
        merged = cursor.merge([state["cursor"] for state in states], num_readers, places_of(states))
        return {"cursor": merged, "packer": None}

    def _rendered(self, cursor: Cursor) -> Iterator[Masked]:
        for conversation in cursor:
            cursor.num_taken += 1
            self._places.add(cursor.last_place())
            token_ids, loss_mask = render_conversation(self.tokenizer, conversation)
            if self.numbers is not None:
                number = self.numbers[conversation["source"]]
                loss_mask = [mask * number for mask in loss_mask]
            yield token_ids, loss_mask

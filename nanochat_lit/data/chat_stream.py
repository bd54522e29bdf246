"""Conversations as batches for fine-tuning: rendered, packed whole, padded; targets -1 where nothing is to be learned."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from nanochat_lit.data.cursor import Cursor
from nanochat_lit.data.packing import Masked, PaddedRows
from nanochat_lit.data.pretrain_stream import Batch, PackedStream
from nanochat_lit.data.sources import SourceLike, as_source
from nanochat_lit.model.loss_kernel import IGNORE_INDEX
from nanochat_lit.tokenizer.chat import render_conversation

_log = logging.getLogger(__name__)


class ChatStream(PackedStream):
    """Batches of conversations.

    A conversation longer than the row is cut at the row; `counts.items_cut` has the number, and one warning is logged
    when it happens first and one with the total when a finite split ends, in the first iteration only.

    Args:
        conversations: A path, a list, a function that makes an iterator, or an object with `iterate`.
        seed: Order of the training epochs, when `conversations` is a path or a list.
        names: Where conversations may come from, as their "source" says; None does not keep apart. With names, batches
            have "sources" too, (B, T) uint8: 0 where nothing is to be learned, k where the target is of the k-th name.
        options: Of `PackedStream`.
    """

    def __init__(
        self,
        *,
        conversations: SourceLike,
        seed: int = 0,
        names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(as_source(conversations, "messages", seed), **options)
        self.numbers = None if names is None else {name: number for number, name in enumerate(names, start=1)}
        self._has_warned = False

    def __iter__(self) -> Iterator[Batch]:
        batches = self.begin()
        warn, self._has_warned = not self._has_warned, True  # validation reads the same stream again and again
        warned = False
        for rows in batches:
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

    def packed(self, cursor: Cursor) -> PaddedRows:
        """Rows of whole conversations, padded."""
        return PaddedRows(self._rendered(cursor), self.sequence_len + 1, self.tokenizer.bos_id, self.buffer_size)

    def _rendered(self, cursor: Cursor) -> Iterator[Masked]:
        for conversation in cursor:
            self.taken(cursor)
            token_ids, loss_mask = render_conversation(self.tokenizer, conversation)
            if self.numbers is not None:
                number = self.numbers[conversation["source"]]
                loss_mask = [mask * number for mask in loss_mask]
            yield token_ids, loss_mask

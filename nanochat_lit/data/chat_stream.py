"""Stream of fine-tuning batches: conversations packed whole and padded, with target -1 for untrained tokens."""

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

    Conversations longer than a sequence are truncated and counted in `counts.items_cut`. In the first iteration, a
    warning is logged at the first truncation, and one with the total at the end of a finite split.

    Args:
        conversations: A path, a list, a function that returns an iterator, or an object with `iterate`.
        seed: Seed of the order of training epochs, if `conversations` is a path or a list.
        names: Values of "source" in the conversations; None does not distinguish them. With names, batches also have
            "sources", (B, T) uint8: 0 for untrained tokens, k for targets of the k-th name.
        options: Options of `PackedStream`.
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
        warn, self._has_warned = not self._has_warned, True  # validation iterates over the same stream repeatedly
        warned = False
        for rows in batches:
            if warn and self.counts.items_cut and not warned:
                warned = True
                _log.warning("conversations longer than sequence_len %d are truncated", self.sequence_len)
            tokens = torch.tensor([token_ids for token_ids, _ in rows], dtype=torch.int64)  # (B, T + 1)
            sources = torch.tensor([loss_mask for _, loss_mask in rows], dtype=torch.uint8)[:, 1:]
            targets = tokens[:, 1:].masked_fill(sources == 0, IGNORE_INDEX)
            batch = {"inputs": tokens[:, :-1].contiguous(), "targets": targets}
            yield batch if self.numbers is None else {**batch, "sources": sources.contiguous()}
        if warn and self.counts.items_cut:
            _log.warning(
                "%d of %d conversations were truncated to sequence_len %d, %d tokens lost",
                *(self.counts.items_cut, self.counts.items, self.sequence_len, self.counts.cropped),
            )

    def rows(self) -> Iterator[Batch]:
        """Yield the batches that workers send."""
        return iter(self)

    @staticmethod
    def batch_of(rows: Batch) -> Batch:
        """Return the batch unchanged."""
        return rows

    def packed(self, cursor: Cursor) -> PaddedRows:
        """Return packed and padded sequences."""
        return PaddedRows(self._rendered(cursor), self.sequence_len + 1, self.tokenizer.bos_id, self.buffer_size)

    def _rendered(self, cursor: Cursor) -> Iterator[Masked]:
        for conversation in cursor:
            self.taken(cursor)
            token_ids, loss_mask = render_conversation(self.tokenizer, conversation)
            if self.numbers is not None:
                number = self.numbers[conversation["source"]]
                loss_mask = [mask * number for mask in loss_mask]
            yield token_ids, loss_mask

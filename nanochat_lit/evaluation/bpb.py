"""Bits per byte: a loss that does not depend on the vocabulary, so that models with different tokenizers compare.

The sum of the token losses (nats) over targets that stand for text, divided by ln 2 times the bytes they stand for.
Control tokens stand for no text and count neither as loss nor as bytes.
"""

import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from nanochat_lit.common.distributed import rank, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.lengths import padded_length
from nanochat_lit.evaluation.ranks import sum_over_ranks
from nanochat_lit.model import IGNORE_INDEX

UNITS_PER_NAT = 2**24
"""Resolution of the sums of `BitsPerByte`."""

PIECES_PER_SORT = 64
"""Micro-batches' worth of pieces that are sorted by length at a time; bounds memory, keeps padding small."""


class LossModel(Protocol):
    """What gives the losses of tokens: our GPT, another library's model."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def __call__(self, inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Loss of each target for "none", (B, T) nats; those of IGNORE_INDEX may be anything."""
        ...


class TextEncoder(Protocol):
    """The part of a tokenizer that is needed here."""

    @property
    def bos_id(self) -> int:
        """What a document is predicted from."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, all of which stand for text."""
        ...


class BitsPerByte(Metric):
    """Bits per byte of all updates, over all ranks.

    The nats are summed as whole numbers of 2^-24: exact, the same in any order of batches and ranks, no small term is
    ever lost, and it works on devices without float64 (MPS). Room for 10^11 tokens. NaN before the first byte.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    units: Tensor
    num_bytes: Tensor
    num_not_finite: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("units", "num_bytes", "num_not_finite"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, token_losses: Tensor, targets: Tensor, token_bytes: Tensor) -> None:
        """Add a batch.

        Args:
            token_losses: Loss of each target, nats, any shape.
            targets: Token ids, as many as losses; IGNORE_INDEX (-1) is left out.
            token_bytes: (V,) bytes that each token id stands for, from `Tokenizer.token_bytes`.
        """
        targets, token_losses = targets.reshape(-1), token_losses.detach().reshape(-1).float()
        lengths = token_bytes.to(targets.device)[targets.clamp(min=0)]
        lengths = torch.where(targets == IGNORE_INDEX, 0, lengths)
        # where, not a product: the loss of a target that is left out may be anything, NaN included
        counted = torch.where(lengths > 0, token_losses, 0.0)
        is_finite = counted.isfinite()
        units = (torch.where(is_finite, counted, 0.0) * UNITS_PER_NAT).round().to(torch.int64).sum()
        self.units += units.to(self.units.device)
        self.num_bytes += lengths.sum(dtype=torch.int64).to(self.num_bytes.device)
        self.num_not_finite += (~is_finite).sum().to(self.num_not_finite.device)

    def compute(self) -> Tensor:
        """Bits per byte, a float64 scalar on the CPU; NaN if no byte was counted or a loss was not finite."""
        num_bytes = int(self.num_bytes)
        if num_bytes == 0 or int(self.num_not_finite):
            return torch.tensor(math.nan, dtype=torch.float64)
        return torch.tensor(int(self.units) / UNITS_PER_NAT / math.log(2) / num_bytes, dtype=torch.float64)


def evaluate_documents(
    model: LossModel,
    tokenizer: TextEncoder,
    texts: Iterable[str],
    sequence_len: int,
    max_docs: int | None = None,
    micro_batch_size: int = 8,
) -> dict[str, float]:
    """Bits per byte of whole documents: none is dropped or cropped, every byte counts once.

    With a process group, every rank reads all documents and measures its share; all have the whole result.

    A document's tokens are cut into pieces of at most sequence_len; each piece is predicted from <|bos|> on.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        texts: Documents.
        sequence_len: Longest piece in tokens.
        max_docs: Stop after this many; None reads all.
        micro_batch_size: Pieces per forward pass.

    Returns:
        bpb, and counts of documents, tokens, bytes (UTF-8) and seconds.

    Raises:
        UserError: If max_docs, micro_batch_size or sequence_len is below 1, the text is empty, or losses are not finite.
    """
    limits = {"max_docs": max_docs, "micro_batch_size": micro_batch_size, "sequence_len": sequence_len}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    start_s = time.perf_counter()
    counts = {"documents": 0, "bytes": 0}

    def counted() -> Iterator[str]:
        for text in islice(islice(texts, max_docs), rank(), None, world_size()):
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            yield text

    per_token = BitsPerByte()  # of tokens that count as a byte each: whose bytes they are does not matter to the sum
    one_byte = torch.ones(tokenizer.vocab_size, dtype=torch.int64, device=model.device)
    with torch.inference_mode():
        for batch in document_batches(counted(), tokenizer, sequence_len, micro_batch_size):
            inputs, targets = batch["inputs"].to(model.device), batch["targets"].to(model.device)
            per_token.update(model(inputs, targets, reduction="none"), targets, one_byte)
    own = [*counts.values(), per_token.num_bytes, per_token.units, per_token.num_not_finite]
    sums = sum_over_ranks(torch.tensor([int(count) for count in own], device=model.device)).tolist()
    *_, num_tokens, units, num_not_finite = sums
    counts = {"documents": sums[0], "tokens": num_tokens, "bytes": sums[1]}
    if counts["bytes"] == 0:
        raise UserError(f"no text in {counts['documents']} documents; bits per byte needs at least one byte")
    if num_not_finite:
        raise UserError(f"{num_not_finite:,} losses of the model are not finite; its weights are damaged")
    bpb = units / UNITS_PER_NAT / math.log(2) / counts["bytes"]
    return {"bpb": bpb, **counts, "seconds": time.perf_counter() - start_s}


def document_batches(
    documents: Iterable[str | np.ndarray], tokenizer: TextEncoder, sequence_len: int, micro_batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Whole documents as batches of pieces that each begin with <|bos|>; every token is a target exactly once.

    Args:
        documents: Texts, or their token ids from <|bos|> on.
        tokenizer: Encodes them.
        sequence_len: Longest piece in tokens.
        micro_batch_size: Pieces in a batch; pieces of similar lengths go together.

    Yields:
        {"inputs", "targets"}, (B, T) int64 each, T of the list of `padded_length` or sequence_len; targets are IGNORE_INDEX
        on padding.
    """
    token_lists = (tokenizer.encode(item) if isinstance(item, str) else item[1:].tolist() for item in documents)
    pieces = (piece for token_ids in token_lists for piece in _cut(token_ids, sequence_len))
    for batch in _batches(pieces, micro_batch_size):
        inputs, targets = _pad(batch, tokenizer.bos_id, padded_length(max(map(len, batch)), sequence_len))
        yield {"inputs": inputs, "targets": targets}


def _cut(token_ids: list[int], sequence_len: int) -> Iterator[list[int]]:
    """Runs of at most sequence_len tokens, the targets of one piece each; together all tokens once."""
    for start in range(0, len(token_ids), sequence_len):
        yield token_ids[start : start + sequence_len]


def _batches(pieces: Iterator[list[int]], micro_batch_size: int) -> Iterator[list[list[int]]]:
    """All pieces, in batches of similar lengths."""
    while window := list(islice(pieces, PIECES_PER_SORT * micro_batch_size)):
        window.sort(key=len, reverse=True)
        for start in range(0, len(window), micro_batch_size):
            yield window[start : start + micro_batch_size]


def _pad(pieces: list[list[int]], bos_id: int, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, length) of pieces, filled on the right, where causal attention lets padding change nothing."""
    inputs = [[bos_id, *piece[:-1]] + [bos_id] * (length - len(piece)) for piece in pieces]
    targets = [piece + [IGNORE_INDEX] * (length - len(piece)) for piece in pieces]
    return torch.tensor(inputs), torch.tensor(targets)

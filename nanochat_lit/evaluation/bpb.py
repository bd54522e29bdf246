"""Bits per byte: a loss that does not depend on the vocabulary and is comparable between tokenizers.

The sum of the token losses (nats) over targets that represent text, divided by ln 2 times their number of bytes.
Control tokens are excluded from both.
"""

import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from nanochat_lit.common.distributed import rank, sum_over_ranks, world_size
from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.hardware import padded_length
from nanochat_lit.evaluation.huggingface import HuggingFaceModel, TextTokenizer
from nanochat_lit.model import GPT, IGNORE_INDEX

UNITS_PER_NAT = 2**24
"""Resolution of the sums of `BitsPerByte`."""

PIECES_PER_SORT = 64
"""Number of micro-batches of chunks to sort by length at a time; bounds memory and limits padding."""


class BitsPerByte(Metric):
    """Bits per byte of all updates, over all ranks.

    Nats are summed as integer multiples of 2^-24. The sum is exact, independent of the order of batches and ranks, and
    works on devices without float64 (MPS). Capacity: 10^11 tokens. NaN before the first byte.
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
        """Add the losses of targets, in nats; of targets of IGNORE_INDEX (-1) they are excluded.

        `token_bytes`, (V,), has the number of bytes of each token id, from `Tokenizer.token_bytes`.
        """
        targets, token_losses = targets.reshape(-1), token_losses.detach().reshape(-1).float()
        lengths = token_bytes.to(targets.device)[targets.clamp(min=0)]
        lengths = torch.where(targets == IGNORE_INDEX, 0, lengths)
        # where instead of a product: the loss of an excluded target is arbitrary, even NaN
        counted = torch.where(lengths > 0, token_losses, 0.0)
        is_finite = counted.isfinite()
        units = (torch.where(is_finite, counted, 0.0) * UNITS_PER_NAT).round().to(torch.int64).sum()
        self.units += units.to(self.units.device)
        self.num_bytes += lengths.sum(dtype=torch.int64).to(self.num_bytes.device)
        self.num_not_finite += (~is_finite).sum().to(self.num_not_finite.device)

    def compute(self) -> Tensor:
        """Return bits per byte, a float64 scalar on the CPU; NaN without bytes or with a non-finite loss."""
        num_bytes = int(self.num_bytes)
        if num_bytes == 0 or int(self.num_not_finite):
            return torch.tensor(math.nan, dtype=torch.float64)
        return torch.tensor(int(self.units) / UNITS_PER_NAT / math.log(2) / num_bytes, dtype=torch.float64)


def evaluate_documents(
    model: GPT | HuggingFaceModel,
    tokenizer: TextTokenizer,
    texts: Iterable[str],
    sequence_len: int,
    max_docs: int | None = None,
    micro_batch_size: int = 8,
) -> dict[str, float]:
    """Compute bits per byte over whole documents; every byte counts once.

    With a process group, the documents are distributed over the ranks, and all ranks return the full result.

    A document's tokens are split into chunks of at most sequence_len tokens, each preceded by <|bos|>.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        texts: Documents.
        sequence_len: Maximum length of a chunk, tokens.
        max_docs: Maximum number of documents; None reads all.
        micro_batch_size: Chunks per forward pass.

    Returns:
        bpb, and counts of documents, tokens, bytes (UTF-8) and seconds.

    Raises:
        UserError: If max_docs, micro_batch_size or sequence_len is less than 1, the text is empty, or losses are not
            finite.
    """
    check_at_least_one(max_docs=max_docs, micro_batch_size=micro_batch_size, sequence_len=sequence_len)
    start_s = time.perf_counter()
    counts = {"documents": 0, "bytes": 0}

    def counted() -> Iterator[str]:
        for text in islice(islice(texts, max_docs), rank(), None, world_size()):
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            yield text

    per_token = BitsPerByte()  # each token counts as one byte here; the actual bytes are counted separately
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
        raise UserError(f"no text in {counts['documents']} documents; bits per byte needs at least one byte of text")
    if num_not_finite:
        raise UserError(f"{num_not_finite:,} losses are not finite; the model's weights are damaged")
    bpb = units / UNITS_PER_NAT / math.log(2) / counts["bytes"]
    return {"bpb": bpb, **counts, "seconds": time.perf_counter() - start_s}


def document_batches(
    documents: Iterable[str | np.ndarray], tokenizer: TextTokenizer, sequence_len: int, micro_batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of chunks of documents that each begin with <|bos|>; every token is a target exactly once.

    Documents are texts, or their token ids including <|bos|>. A chunk has at most `sequence_len` tokens; batches
    contain chunks of similar lengths.

    Yields:
        {"inputs", "targets"}, (B, T) int64 each, where T is a length of `padded_length` or sequence_len; targets are
            IGNORE_INDEX on padding.
    """
    token_lists = (tokenizer.encode(item) if isinstance(item, str) else item[1:].tolist() for item in documents)
    pieces = (ids[start : start + sequence_len] for ids in token_lists for start in range(0, len(ids), sequence_len))
    while window := list(islice(pieces, PIECES_PER_SORT * micro_batch_size)):
        window.sort(key=len, reverse=True)
        for start in range(0, len(window), micro_batch_size):
            batch = window[start : start + micro_batch_size]
            inputs, targets = _pad(batch, tokenizer.bos_id, padded_length(max(map(len, batch)), sequence_len))
            yield {"inputs": inputs, "targets": targets}


def _pad(pieces: list[list[int]], bos_id: int, length: int) -> tuple[Tensor, Tensor]:
    inputs = [[bos_id, *piece[:-1]] + [bos_id] * (length - len(piece)) for piece in pieces]
    targets = [piece + [IGNORE_INDEX] * (length - len(piece)) for piece in pieces]
    return torch.tensor(inputs), torch.tensor(targets)

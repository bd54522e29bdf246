"""Tokenization of documents in batches."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nanochat_lit.tokenizer import Tokenizer

ENCODE_BATCH_SIZE = 128
"""Maximum number of texts per tokenizer call."""
ENCODE_BATCH_CHARS = 20_000
"""Maximum number of characters per tokenizer call of a stream; more would produce batches in bursts and stall
training."""


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 that can represent every id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def encoded_documents(tokenizer: "Tokenizer", texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
    """Return the token ids of each text, beginning with BOS, using `num_threads` native threads."""
    dtype = token_dtype(tokenizer.vocab_size)
    documents = []
    for token_ids in tokenizer.encode_batch(texts, num_threads):
        document = np.empty(len(token_ids) + 1, dtype)
        document[0] = tokenizer.bos_id
        document[1:] = token_ids
        documents.append(document)
    return documents


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items (itertools.batched needs Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def small_batches(items: Iterable[Any]) -> Iterator[list[Any]]:
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

"""Documents of text as arrays of token ids."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nanochat_lit.tokenizer import Tokenizer

ENCODE_BATCH_SIZE = 128
"""Texts that are encoded in one call, at most."""
ENCODE_BATCH_CHARS = 20_000
"""Characters that a stream has encoded in one call: more would make batches come in bursts, and training wait for them."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def encoded_documents(tokenizer: "Tokenizer", texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
    """Token ids of each text, from BOS on; `num_threads` native threads share the work."""
    dtype = token_dtype(tokenizer.vocab_size)
    documents = []
    for token_ids in tokenizer.encode_batch(texts, num_threads):
        document = np.empty(len(token_ids) + 1, dtype)
        document[0] = tokenizer.bos_id
        document[1:] = token_ids
        documents.append(document)
    return documents


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of up to `size` items (itertools.batched needs Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def small_batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of up to ENCODE_BATCH_SIZE items, and of not much more than ENCODE_BATCH_CHARS characters (or tokens)."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item)
        if size >= ENCODE_BATCH_CHARS or len(batch) == ENCODE_BATCH_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""Documents that occur more than once, exactly or nearly, in bounded memory."""

import hashlib
import re
import zlib
from collections.abc import Iterator

import numpy as np

NUM_HASHES = 64
BAND = 4
"""Hashes of a band: documents that agree in all of one band are compared. With 16 bands a pair of similarity 0.8 is found with 99.98%."""
SHINGLE_WORDS = 5
SIMILARITY = 0.8
"""Share of common runs of five words from which two documents are near duplicates."""
_PRIME = (1 << 31) - 1
_WORD = re.compile(r"\w+")


class ExactDuplicates:
    """Counts documents that are the same, character by character.

    Up to `limit` different documents are remembered, by their hash; beyond it those whose hash ends in a zero bit, then
    in two, and so on: all copies of a document are remembered or none, so the share stays an honest estimate.

    Args:
        limit: Different documents to remember.
    """

    def __init__(self, limit: int = 1_000_000) -> None:
        self.limit = limit
        self._counts: dict[int, int] = {}
        self._mask = 0

    def add(self, text: str) -> None:
        """Count a document."""
        key = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        if key & self._mask:
            return
        self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._counts) > self.limit:
            self._mask = self._mask * 2 + 1
            self._counts = {key: count for key, count in self._counts.items() if not key & self._mask}

    @property
    def share(self) -> float:
        """Share of documents that are a copy of an earlier one."""
        total = sum(self._counts.values())
        return 1 - len(self._counts) / total if total else 0.0

    @property
    def is_estimate(self) -> bool:
        """Whether only some documents were remembered."""
        return self._mask != 0


class NearDuplicates:
    """Finds documents that share most of their runs of five words, by MinHash (Broder 1997) over bands."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._factors = rng.integers(1, _PRIME, (NUM_HASHES, 1), dtype=np.int64)
        self._terms = rng.integers(0, _PRIME, (NUM_HASHES, 1), dtype=np.int64)
        self._signatures: list[np.ndarray] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        self._near: set[int] = set()
        self.num_documents = 0

    def add(self, text: str) -> None:
        """Compare a document with those before it."""
        self.num_documents += 1
        signature = self._signature(text)
        if signature is None:
            return
        number = len(self._signatures)
        candidates: set[int] = set()
        for key in self._keys(signature):
            others = self._bands.setdefault(key, [])
            candidates.update(others[:8])  # enough to find that there is one
            others.append(number)
        if any(self._similarity(signature, self._signatures[other]) >= SIMILARITY for other in sorted(candidates)):
            self._near.add(number)
        self._signatures.append(signature)

    @property
    def share(self) -> float:
        """Share of documents that are nearly the same as an earlier one, exact copies included."""
        return len(self._near) / self.num_documents if self.num_documents else 0.0

    def _signature(self, text: str) -> np.ndarray | None:
        words = _WORD.findall(text.lower())
        if len(words) < SHINGLE_WORDS:
            return None
        runs = {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(len(words) - SHINGLE_WORDS + 1)}
        hashes = np.fromiter((zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs), np.int64, len(runs))
        # 31 bits times 31 bits stay below 2^63
        return ((self._factors * (hashes % _PRIME) + self._terms) % _PRIME).min(axis=1)

    @staticmethod
    def _keys(signature: np.ndarray) -> Iterator[tuple[int, bytes]]:
        return ((start, signature[start : start + BAND].tobytes()) for start in range(0, NUM_HASHES, BAND))

    @staticmethod
    def _similarity(one: np.ndarray, other: np.ndarray) -> float:
        return float((one == other).mean())

"""Streaming of any Hugging Face data set with the `datasets` package."""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.record_files import TextCheck
from nanochat_lit.data.text_source import Split, TextSource

BUFFER_CHARS = 200_000_000
"""Maximum number of characters in the shuffle buffer, which bounds the memory for large records."""
_ROWS_AT_ONCE = 16


class HubStream(TextSource):
    """A hub data set of any format, streamed without storing files.

    Texts are shuffled per epoch within a buffer of at most 200 million characters. Records that are null, empty,
    binary, not UTF-8 or longer than 10 million characters are skipped, with a warning for the first of each kind.

    Every reader reads the whole stream and uses its share, so the traffic grows with the number of readers. A position
    is the index of a text in its epoch, and resuming reads up to it again. Another number of readers continues without
    repeating or skipping a text (see `ItemCursor`, and `loader.merged` for documents in packing), provided that the
    data set does not change: set a revision. For large runs prefer `HubFiles`, if the data set has parquet or jsonl
    files.

    Args:
        repo: Argument of `datasets.load_dataset`: OWNER/NAME, or a format such as parquet.
        subset: Configuration of the data set.
        split: Training split.
        val_split: Validation split; None holds out the first records of `split`.
        val_rows: Number of validation records.
        text_column: Column of the text.
        data_files: Files or patterns, if not all.
        revision: Commit, tag or branch of the data set; None is the current version.
        seed: Seed of the shuffle.
        buffer_size: Maximum number of texts in the shuffle buffer.
    """

    def __init__(
        self,
        repo: str,
        subset: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        val_rows: int = 1000,
        text_column: str = "text",
        data_files: str | list[str] | None = None,
        revision: str | None = None,
        seed: int = 0,
        buffer_size: int = 10_000,
    ) -> None:
        for name, value in (("val_rows", val_rows), ("buffer_size", buffer_size)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self.repo = repo
        self.subset = subset
        self.split = split
        self.val_split = val_split
        self.val_rows = val_rows
        self.text_column = text_column
        self.data_files = data_files
        self.revision = revision
        self.seed = seed
        self.buffer_size = buffer_size
        self._text_check = TextCheck(text_column, "data set")

    @property
    def name(self) -> str:
        """Name of the data set."""
        return f"{self.repo} ({self.split})"

    def check(self) -> None:
        """Read one record of each split."""
        for split in ("train", "val"):
            if next(self.documents(split), None) is None:
                raise UserError(f"{self.name} has no text for the {split} split")

    def validation(self) -> dict[str, str]:
        """Return the sha256 of the validation texts."""
        digest = hashlib.sha256()
        for text in self.documents("val"):
            digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
        rows = f"{self.val_split or self.split}, first {self.val_rows:,} rows"
        return {f"{self.repo} ({rows})": digest.hexdigest()}

    def documents(self, split: Split = "all") -> Iterator[str]:
        """Yield the texts in the order of the data set."""
        if split == "val":
            return self._texts(self.val_split or self.split, stop=self.val_rows)
        return self._texts(self.split, self.val_rows if split == "train" and self.val_split is None else 0)

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[str]:
        """Yield every `world_size`-th text; 'train' is shuffled within the buffer by seed and epoch."""
        texts = self.documents(split)
        if split == "train":
            texts = self._shuffled(texts, random.Random(f"{self.seed}-{epoch}"))
        return islice(texts, rank, None, world_size)

    def _load(self, split: str) -> Any:
        import datasets

        options = {"data_files": self.data_files, "revision": self.revision, "streaming": True}
        try:
            return datasets.load_dataset(self.repo, self.subset, split=split, **options)
        except Exception as error:  # noqa: BLE001 - offline, no such split, a broken cache: each has errors of its own
            raise UserError(f"{self.repo} ({split}) cannot be read from the Hugging Face hub {_short(error)}") from None

    def _texts(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """Yield the texts of a range of records of a split."""
        name = f"{self.repo} ({split})"
        for number, row in enumerate(islice(self._rows(split), start, stop), start):
            if self.text_column not in row:
                raise UserError(f"{name} has no column {self.text_column!r} (columns: {', '.join(row) or 'none'})")
            text = self._text_check.text(row[self.text_column], lambda number=number: f"{name}, row {number}")
            if text is not None:
                yield text

    def _rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a split.

        Reads in batches, because the data set's own iterator would distribute its files over DataLoader workers.
        """
        batches = self._load(split).iter(batch_size=_ROWS_AT_ONCE)
        number = 0
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # noqa: BLE001 - of the network, of a damaged file, of any format
                raise UserError(f"{self.repo} ({split}) cannot be read on from row {number} {_short(error)}") from None
            if batch is None:
                return
            size = len(next(iter(batch.values()), ()))
            yield from ({column: values[index] for column, values in batch.items()} for index in range(size))
            number += size

    def _shuffled(self, texts: Iterator[str], random_numbers: random.Random) -> Iterator[str]:
        buffer: list[str] = []
        num_chars = 0
        for text in texts:
            buffer.append(text)
            num_chars += len(text)
            while len(buffer) > self.buffer_size or num_chars > BUFFER_CHARS:
                chosen = random_numbers.randrange(len(buffer))
                buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
                num_chars -= len(buffer[-1])
                yield buffer.pop()
        random_numbers.shuffle(buffer)
        yield from buffer


def _short(error: Exception) -> str:
    return f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"

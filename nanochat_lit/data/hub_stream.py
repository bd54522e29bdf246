"""Any data set of the Hugging Face hub, read as a stream by the `datasets` package."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.text_source import Split, TextSource


class HubStream(TextSource):
    """A data set of the hub in whatever format, nothing of it kept on the disk.

    Rows come in the data set's order, shuffled within a buffer; the place is a count, so that coming back to it means
    reading up to it again. For large runs `HubFiles` is better, if the data set has parquet or jsonl files.

    Args:
        repo: What `datasets.load_dataset` takes: OWNER/NAME, or a format such as parquet.
        subset: Configuration of the data set.
        split: Its split to train on.
        val_split: Its split to validate on; None holds back the first rows of `split`.
        val_rows: Rows to validate on.
        text_column: Column that has the text.
        data_files: Files or patterns, if not all.
        seed: Order within the buffer.
        buffer_size: Rows that the order is drawn from.
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
        seed: int = 0,
        buffer_size: int = 10_000,
    ) -> None:
        for name, value in (("val_rows", val_rows), ("buffer_size", buffer_size)):
            if value < 1:
                raise UserError(f"{name} is {value}, but must be at least 1")
        self.repo = repo
        self.subset = subset
        self.split = split
        self.val_split = val_split
        self.val_rows = val_rows
        self.text_column = text_column
        self.data_files = data_files
        self.seed = seed
        self.buffer_size = buffer_size

    @property
    def name(self) -> str:
        """The data set."""
        return f"{self.repo} ({self.split})"

    def check(self) -> None:
        """Read one row of each split."""
        for split in ("train", "val"):
            if next(self.documents(split), None) is None:
                raise UserError(f"{self.name} has no text for the {split} split")

    def documents(self, split: Split = "all") -> Iterator[Any]:
        """The texts in the order of the data set."""
        if split == "val":
            return self._texts(islice(iter(self._load(self.val_split or self.split)), self.val_rows))
        skip = self.val_rows if split == "train" and self.val_split is None else 0
        return self._texts(iter(self._load(self.split).skip(skip)))

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Every `world_size`-th text; 'train' shuffled within the buffer, by seed and epoch."""
        if split != "train":
            return islice(self.documents(split), rank, None, world_size)
        rows = self._load(self.split).skip(self.val_rows if self.val_split is None else 0)
        shuffled = rows.shuffle(seed=self.seed * 1_000_003 + epoch, buffer_size=self.buffer_size)
        return islice(self._texts(iter(shuffled)), rank, None, world_size)

    def _load(self, split: str) -> Any:
        import datasets

        try:
            return datasets.load_dataset(
                self.repo, self.subset, split=split, data_files=self.data_files, streaming=True
            )
        except Exception as error:  # noqa: BLE001 - offline, no such split, a broken cache: each has errors of its own
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{self.repo} ({split}) cannot be read from the Hugging Face hub ({type(error).__name__}: {reason})"
            ) from None

    def _texts(self, rows: Iterator[Any]) -> Iterator[str]:
        for row in rows:
            if self.text_column not in row:
                raise UserError(f"{self.name} has no column {self.text_column!r} (columns: {', '.join(row) or 'none'})")
            text = row[self.text_column]
            if text is not None and not isinstance(text, str):
                raise UserError(f"{self.name}: {self.text_column!r} is {type(text).__name__}, expected a string")
            if text:
                yield text

"""Files of text or conversations as a source: which files, which split, in which order, for which rank.

With several files the last by name is the validation split, as with nanochat's shards; with one file its last percent
of rows. Rows go to ranks by their place in the order of the epoch, so that every rank has its share.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.record_files import KINDS, RecordFile

Column = Literal["text", "messages"]
Split = Literal["train", "val", "all"]
SPLITS = ("train", "val", "all")
THOROUGH_CHECK_BYTES = 512 * 2**20
VALIDATION_FRACTION = 0.01


class FileSource:
    """Documents (strings) or conversations (dicts) in one file or in the files of a folder."""

    def __init__(self, path: str | Path, column: Column = "text", seed: int = 0) -> None:
        self.path = Path(path)
        self.column: Column = column
        self.seed = seed
        self.num_skipped = 0
        """Null or empty rows passed over so far."""
        if column not in ("text", "messages"):
            raise UserError(f"column is {column!r}; use 'text' or 'messages'")
        self.files: list[RecordFile] = [KINDS[file.suffix](file, column) for file in _find_files(self.path)]
        if column == "messages" and self.files[0].path.suffix == ".txt":
            raise UserError(f"'{self.path}': conversations need .jsonl or .parquet files with 'messages', not .txt")

    def num_rows(self, split: Split) -> int:
        """Rows of a split, null and empty ones included."""
        return sum(stop - start for _, start, stop in self._ranges(split))

    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Every item of a split once, in the order of the files."""
        return self._items(self._blocks(split), 0, 1, None)

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The items of one epoch that belong to `rank`; 'train' in an order drawn from the seed and the epoch."""
        blocks = self._blocks(split)
        if split != "train":
            return self._items(blocks, rank, world_size, None)
        rng = random.Random(f"{self.seed}-{epoch}")
        rng.shuffle(blocks)
        return self._items(blocks, rank, world_size, rng)

    def check(self) -> None:
        """Open every file, and read every row up to 512 MiB in all, so that damage shows before training.

        Raises:
            UserError: Names the file, and the row where there is one.
        """
        size = sum(file.path.stat().st_size for file in self.files)
        for file in self.files:
            file.check(thorough=size <= THOROUGH_CHECK_BYTES)

    def _items(
        self, blocks: list[tuple[int, int, int]], rank: int, world_size: int, rng: random.Random | None
    ) -> Iterator[Any]:
        place = 0
        for index, start, stop in blocks:
            rows = list(range(start, stop))
            if rng is not None:
                rng.shuffle(rows)
            mine = rows[(rank - place) % world_size :: world_size]
            place += len(rows)
            for item in self.files[index].read(mine):
                if item is None:
                    self.num_skipped += 1
                else:
                    yield item

    def _blocks(self, split: Split) -> list[tuple[int, int, int]]:
        """(file, start, stop) of the blocks of a split."""
        return [
            (index, max(start, first), min(stop, last))
            for index, first, last in self._ranges(split)
            for start, stop in self.files[index].blocks()
            if start < last and stop > first
        ]

    def _ranges(self, split: Split) -> list[tuple[int, int, int]]:
        """(file, first row, last row + 1) of a split."""
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
        files = range(len(self.files))
        if split != "all" and len(self.files) > 1:
            files = files[:-1] if split == "train" else files[-1:]
        ranges = [(index, 0, self.files[index].num_rows) for index in files]
        total = sum(stop for _, _, stop in ranges)
        if total == 0:
            part = "" if split == "all" else f" for the {split} split (with several files the last one is val)"
            raise UserError(f"'{self.path}' has no rows{part}; give files with documents")
        if split == "all" or len(self.files) > 1:
            return ranges
        if total < 2:
            raise UserError(
                f"'{self.path}' has only one document, so it cannot be split into train and val; "
                "give at least two documents, or a second file for validation"
            )
        num_train = total - max(1, int(total * VALIDATION_FRACTION))
        return [(0, 0, num_train)] if split == "train" else [(0, num_train, total)]


def open_source(path: str | Path, column: Column = "text", seed: int = 0) -> FileSource:
    """A source on a file or folder; raises UserError if there is nothing to read, but does not look into the files."""
    return FileSource(path, column, seed)


def check_source(path: str | Path, column: Column = "text") -> FileSource:
    """Open a source and make sure that every file can be read, before a training begins.

    Raises:
        UserError: For a missing or empty path, a damaged file, a missing column, a malformed row, an empty split.
    """
    source = FileSource(path, column)
    source.check()
    for split in ("train", "val") if len(source.files) > 1 else ("all",):
        source.num_rows(split)
    return source


def documents(path: str | Path, split: Split = "all") -> Iterator[str]:
    """The texts of a file or folder, each once, in order."""
    return FileSource(path, "text").documents(split)


def conversations(path: str | Path, split: Split = "all") -> Iterator[dict[str, Any]]:
    """The conversations of a file or folder, each once, in order."""
    return FileSource(path, "messages").documents(split)


def _find_files(path: Path) -> list[Path]:
    wanted = " or ".join(KINDS)
    if path.is_file():
        if path.suffix not in KINDS:
            raise UserError(f"'{path}' is not a {wanted} file; convert it or give another")
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder '{path}'; give a {wanted} file or a folder of such files")
    # Hidden files are the unfinished ones of a download or an atomic write.
    files = sorted(
        file for file in path.iterdir() if file.is_file() and file.suffix in KINDS and not file.name.startswith(".")
    )
    if not files:
        inside = next((child.name for child in sorted(path.iterdir()) if child.is_dir()), None)
        hint = f"; subfolders such as '{inside}' are not searched" if inside else ""
        raise UserError(f"the folder '{path}' holds no {wanted} file{hint}")
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise UserError(f"the folder '{path}' holds {' and '.join(kinds)} files; keep one kind in a folder")
    return files

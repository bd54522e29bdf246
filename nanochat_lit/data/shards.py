"""Files of text or conversations as a source: which files, which split, in which order, for which rank.

With several files the last by name is the validation split, as with nanochat's shards; with one file its last percent
of rows. Rows go to ranks by their place in the order of the epoch, so that every rank has its share.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from nanochat_lit.common.downloads import file_sha256
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.block_cursor import Block, BlockCursor
from nanochat_lit.data.prepared import is_prepared, prepared_paths
from nanochat_lit.data.prepared_file import PreparedFile
from nanochat_lit.data.record_files import RecordFile
from nanochat_lit.data.record_kinds import KINDS, kind_of, record_file
from nanochat_lit.data.text_source import Split, TextSource

Column = Literal["text", "messages", "tokens"]
SPLITS = ("train", "val", "all")
THOROUGH_CHECK_BYTES = 512 * 2**20
VALIDATION_FRACTION = 0.01
_log = logging.getLogger(__name__)


class ShardSource(TextSource):
    """Rows of several files, the last of which is for validation, or of one, whose last hundredth is.

    Args:
        path: File or folder, for messages.
        column: 'text' for documents, 'messages' for conversations, 'tokens' for a folder of prepared shards.
        seed: Order of the training epochs.
        window: Files whose blocks are shuffled together; None for all.
    """

    def __init__(self, path: str | Path, column: Column = "text", seed: int = 0, window: int | None = None) -> None:
        if column not in ("text", "messages", "tokens"):
            raise UserError(f"column is {column!r}; use 'text', 'messages' or 'tokens'")
        self.path = Path(path)
        self.column: Column = column
        self.seed = seed
        self.window = window
        self.num_skipped = 0
        """Rows passed over so far: null, empty, or no text to learn from."""
        self._order: tuple[tuple[str, int, int], list[Block]] | None = None
        self._files: list[RecordFile] | None = None

    @property
    def name(self) -> str:
        """The path."""
        return f"'{self.path}'"

    @property
    def files(self) -> list[RecordFile]:
        """The files, that for validation last."""
        if self._files is None:
            tokens = self.column == "tokens"
            paths = self.find_files()
            self._files = [PreparedFile(path) if tokens else record_file(path, self.field) for path in paths]
        return self._files

    @property
    def field(self) -> str:
        """Column or field that has what is read."""
        return self.column

    def find_files(self) -> list[Path]:
        """The files to read, that for validation last."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Changes when a place in the files would become another one: their names and lengths."""
        return "\n".join(f"{file.path.name} {file.path.stat().st_size}" for file in self.files)

    def num_rows(self, split: Split, enough: int | None = None) -> int:
        """Rows of a split, null and empty ones included; counted until there are `enough`."""
        count = 0
        for _, start, stop in self._ranges(split):
            count += stop - start
            if enough is not None and count >= enough:
                break
        return count

    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Every item of a split once, in the order of the files."""
        for file, first, last in self._ranges(split):
            for start, stop in self.opened(file).blocks():
                rows = range(max(start, first), min(stop, last))
                yield from (item for item in self.read(file, rows) if item is not None)

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The items of one epoch that belong to `rank`; 'train' in an order drawn from the seed and the epoch."""
        return self.cursor(split, rank, world_size).epoch_items(epoch)

    def cursor(self, split: str, rank: int, world_size: int) -> BlockCursor:
        """A reader that knows its place."""
        return BlockCursor(self, split, rank, world_size)

    def check(self) -> None:
        """Open every file, and read every row up to 512 MiB in all, so that damage shows before training.

        Raises:
            UserError: Names the file, and the row where there is one.
        """
        size = sum(file.path.stat().st_size for file in self.files)
        for file in self.files:
            file.check(thorough=size <= THOROUGH_CHECK_BYTES)
        for split in ("train", "val") if len(self.files) > 1 else ("all",):
            self.num_rows(split)
        self._check_duplicates()

    def _check_duplicates(self) -> None:
        """Report training files with the same content, and refuse one that is also the validation file."""
        by_size: dict[int, list[Path]] = {}
        for file in self.files:
            by_size.setdefault(file.path.stat().st_size, []).append(file.path)
        first: dict[str, Path] = {}
        for size, paths in by_size.items():
            for path in paths if size and len(paths) > 1 else ():
                other = first.setdefault(file_sha256(path), path)
                if path is other:
                    continue
                if path == self.files[-1].path:
                    raise UserError(
                        f"'{path}', which is for validation, has the same content as '{other}': "
                        "figures would tell what was memorised; remove one of them, or name another for validation"
                    )
                _log.warning("'%s' has the same content as '%s', which is read as often again", path, other)

    def validation(self) -> dict[str, str]:
        """The sha256 of the file that validation reads, by name."""
        file = self.opened(len(self.files) - 1)
        return {file.path.name: file_sha256(file.path)}

    def opened(self, file: int) -> RecordFile:
        """The file of this number."""
        return self.files[file]

    def num_windows(self, split: str) -> int:
        """Windows of an epoch; see `BlockCursor`."""
        return 1 if self.window is None or split != "train" else -(-len(self._split_files(split)) // self.window)

    def blocks(self, split: str, epoch: int, window: int) -> list[Block]:
        """Blocks of a window, in the order of the epoch; one list is kept for the next call."""
        key = (split, epoch if split == "train" else 0, window)
        if self._order is None or self._order[0] != key:
            self._order = key, self._ordered_blocks(*key)
        return self._order[1]

    def rows(self, split: str, epoch: int, window: int, block: Block) -> Sequence[int]:
        """Numbers of the rows of a block, in the order of the epoch."""
        del window
        file, start, stop = block
        if split != "train" or stop - start == 1:
            return range(start, stop)
        rows = list(range(start, stop))
        random.Random(f"{self.seed}-{epoch}-{file}-{start}").shuffle(rows)
        return rows

    def read(self, file: int, rows: Sequence[int]) -> Iterator[Any]:
        """Items of rows of one block; None for null and empty ones, which are counted."""
        for item in self.opened(file).read(rows):
            self.num_skipped += item is None
            yield item

    def file_order(self, split: str, epoch: int) -> list[int]:
        """The files of a split in the order of an epoch, where it matters: when there are windows."""
        files = self._split_files(split)
        if split == "train" and self.window is not None:
            random.Random(f"{self.seed}-{epoch}-files").shuffle(files)
        return files

    def _ordered_blocks(self, split: str, epoch: int, window: int) -> list[Block]:
        chosen = self.file_order(split, epoch)
        if self.window is not None and split == "train":
            chosen = chosen[window * self.window : (window + 1) * self.window]
        blocks = [
            (file, max(start, first), min(stop, last))
            for file, first, last in self._ranges(split, chosen)
            for start, stop in self.opened(file).blocks()
            if start < last and stop > first
        ]
        if split == "train":
            random.Random(f"{self.seed}-{epoch}-{window}").shuffle(blocks)
        return blocks

    def _split_files(self, split: str) -> list[int]:
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
        files = range(len(self.files))
        if split == "all" or len(files) == 1:
            return list(files)
        return list(files[:-1] if split == "train" else files[-1:])

    def _ranges(self, split: str, chosen: Sequence[int] | None = None) -> Iterator[tuple[int, int, int]]:
        """(file, first row, last row + 1) of a split, or of some of its files."""
        total = 0
        for file in self.file_order(split, 0) if chosen is None else chosen:
            num_rows = self.opened(file).num_rows
            total += num_rows
            if split == "all" or len(self.files) > 1:
                yield file, 0, num_rows
        if total == 0 and (chosen is None or self.window is None):
            part = "" if split == "all" else f" for the {split} split (with several files the last one is val)"
            raise UserError(f"{self.name} has no rows{part}; give files with documents")
        if split == "all" or len(self.files) > 1:
            return
        if total < 2:
            raise UserError(
                f"{self.name} has only one document, so it cannot be split into train and val; "
                "give at least two documents, or a second file for validation"
            )
        num_train = total - max(1, int(total * VALIDATION_FRACTION))
        yield (0, 0, num_train) if split == "train" else (0, num_train, total)


class FileSource(ShardSource):
    """Documents (strings) or conversations (dicts) in one file or in the files of a folder.

    Args:
        path: File, or folder of files of one kind: .parquet, .jsonl (also .gz or .zst) or .txt.
        column: 'text' for documents, 'messages' for conversations, 'tokens' for a folder of prepared shards.
        seed: Order of the training epochs.
        validation: Name of the file to validate with; None takes the last by name, of a single file the last hundredth.
    """

    def __init__(self, path: str | Path, column: Column = "text", seed: int = 0, validation: str | None = None) -> None:
        super().__init__(path, column, seed)
        self.validation_name = validation
        if self.files[0].path.suffix == ".txt" and column == "messages":
            raise UserError(f"'{self.path}': conversations need .jsonl or .parquet files with 'messages', not .txt")

    def find_files(self) -> list[Path]:
        """The files of the folder, that for validation last."""
        paths = prepared_paths(self.path) if self.column == "tokens" else _find_files(self.path)
        if self.validation_name is None:
            return paths
        chosen = [path for path in paths if path.name == self.validation_name]
        if not chosen or len(paths) == 1:
            raise UserError(
                f"'{self.path}' has no validation file '{self.validation_name}' beside others (files: {_listed(paths)})"
            )
        return [path for path in paths if path.name != self.validation_name] + chosen


def text_column(path: object) -> Column:
    """What a path for pretraining holds: 'tokens' in a folder of prepared shards, else 'text'."""
    return "tokens" if is_prepared(path) else "text"


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
        if kind_of(path) is None:
            raise UserError(f"'{path}' is not a {wanted} file; convert it or give another")
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder '{path}'; give a {wanted} file or a folder of such files")
    # Hidden files are the unfinished ones of a download or an atomic write.
    files = sorted(
        file for file in path.iterdir() if file.is_file() and kind_of(file) and not file.name.startswith(".")
    )
    if is_prepared(path):
        raise UserError(f"the folder '{path}' holds prepared token ids; give the folder of the text")
    if not files:
        inside = next((child.name for child in sorted(path.iterdir()) if child.is_dir()), None)
        hint = f"; subfolders such as '{inside}' are not searched" if inside else ""
        raise UserError(f"the folder '{path}' holds no {wanted} file{hint}")
    kinds = sorted({str(kind_of(file)) for file in files})
    if len(kinds) > 1:
        raise UserError(f"the folder '{path}' holds {' and '.join(kinds)} files; keep one kind in a folder")
    return files


def _listed(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", *names[-2:]])

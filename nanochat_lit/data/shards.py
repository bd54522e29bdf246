"""Files of text or conversations as a source: which rows are of which split, in which order, for which rank.

Which files validate is told by `splits`; where none does, the last hundredth of the last file. Rows go to ranks by their place
in the order of the epoch, so that every rank has its share.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from nanochat_lit.common.downloads import file_sha256
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.block_cursor import Block, BlockCursor
from nanochat_lit.data.prepared import is_prepared, prepared_split
from nanochat_lit.data.prepared_file import PreparedFile
from nanochat_lit.data.record_files import SHAREGPT, TXT_BYTES, RecordFile, TextFile
from nanochat_lit.data.record_kinds import CompressedFile, family_of, record_file
from nanochat_lit.data.splits import FileSplit, find_split
from nanochat_lit.data.text_source import Split, TextSource

Column = Literal["text", "messages", "tokens"]
SPLITS = ("train", "val", "all")
SHORTEST_DOCUMENT = 100
"""Bytes of the documents that a short lone text file is cut into."""
THOROUGH_CHECK_BYTES = 512 * 2**20
VALIDATION_FRACTION = 0.01
_log = logging.getLogger(__name__)


class ShardSource(TextSource):
    """Rows of files, of which the last ones are for validation, or the last hundredth of the last one.

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
        self._split: FileSplit | None = None
        self._files: list[RecordFile] | None = None

    @property
    def name(self) -> str:
        """The path."""
        return f"'{self.path}'"

    @property
    def split(self) -> FileSplit:
        """Which files train and which validate."""
        if self._split is None:
            self._split = self.find_split()
        return self._split

    @property
    def files(self) -> list[RecordFile]:
        """The files, those for validation last."""
        if self._files is None:
            tokens = self.column == "tokens"
            self._files = [PreparedFile(path) if tokens else record_file(path, self.field) for path in self.split.files]
            if self._files and not self.split.val and self.split.train:
                _cut_for_validation(self._files[-1])
        return self._files

    @property
    def field(self) -> str:
        """Column or field that has what is read."""
        return self.column

    def find_split(self) -> FileSplit:
        """Which files train and which validate."""
        raise NotImplementedError

    def file_name(self, path: Path) -> str:
        """The name of a file within the folder."""
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) and path != self.path else path.name

    def fingerprint(self) -> str:
        """Changes when a place in the files would become another one: their names, lengths and how text is cut."""
        lines = []
        for file in self.files:
            text = _text_file(file)
            cut = f" {text.layout}" if text is not None and text.layout != TXT_BYTES else ""
            lines.append(f"{self.file_name(file.path)} {file.path.stat().st_size}{cut}")
        return "\n".join(lines)

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
        thorough = size <= THOROUGH_CHECK_BYTES
        num_items = [file.check(thorough) for file in self.files]
        for split in ("train", "val"):
            self.num_rows(split)
        if thorough and not sum(num_items[: len(self.split.train)]):
            raise UserError(self._all_empty())
        self._check_duplicates()

    def _all_empty(self) -> str:
        """Why there is nothing to train on."""
        files = self.files[: len(self.split.train)]
        rows = sum(file.num_rows for file in files)
        names = self.name
        if len(files) > 1:
            names = f"{_listed([self.file_name(file.path) for file in files])} in {names}"
        hint = (
            f"; the conversations stand in {SHAREGPT!r}: rename it" if any(file.num_elsewhere for file in files) else ""
        )
        return f"all {rows:,} rows of {names} are null or empty in {self.field!r}{hint}"

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
                if path in self.split.val:
                    raise UserError(
                        f"'{path}', which is for validation, has the same content as '{other}': "
                        "figures would tell what was memorised; remove one of them, or name another for validation"
                    )
                _log.warning("'%s' has the same content as '%s', which is read as often again", path, other)

    def validation(self) -> dict[str, str]:
        """The sha256 of the files that validation reads, by name."""
        paths = [self.opened(file).path for file in self._split_files("val")]
        return {self.file_name(path): file_sha256(path) for path in paths}

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
        found, files = self.split, range(len(self.files))
        if split == "all":
            return list(files)
        if not found.train:
            kind = "validation" if found.val else "test"
            names = _listed([self.file_name(path) for path in found.files])
            raise UserError(
                f"{self.name} has no file to train on: {names} is of a {kind} split by name; "
                "give the file itself as the path, or rename it"
            )
        if split == "train":
            return list(files[: len(found.train)])
        return list(files[len(found.train) :] or files[-1:])

    def _ranges(self, split: str, chosen: Sequence[int] | None = None) -> Iterator[tuple[int, int, int]]:
        """(file, first row, last row + 1) of a split, or of some of its files."""
        is_shared = split != "all" and not self.split.val
        total = 0
        for file in self.file_order(split, 0) if chosen is None else chosen:
            num_rows = self.opened(file).num_rows
            total += num_rows
            start, stop = 0, num_rows
            if is_shared and file == len(self.files) - 1:  # of which the last hundredth is for validation
                num_train = num_rows - max(1, int(num_rows * VALIDATION_FRACTION))
                start, stop = (0, max(0, num_train)) if split == "train" else (max(0, num_train), num_rows)
            yield file, start, stop
        if total == 0 and (chosen is None or self.window is None):
            raise UserError(self._no_rows(split))
        if is_shared and total < 2 and len(self.files) == 1:
            raise UserError(
                f"{self.name} has only one document, so it cannot be split into train and val; "
                "give at least two documents, or a second file for validation"
            )

    def _no_rows(self, split: str) -> str:
        names = _listed([self.file_name(self.files[file].path) for file in self._split_files(split)])
        if split != "val" or not self.split.val:
            return f"{self.name} has no rows ({names}); give files with documents"
        why = " (the last by name)" if self.split.is_by_order else ""
        return f"{names} in {self.name} validates{why}, but has no rows; fill it, remove it, or name another with --data.validation"


class FileSource(ShardSource):
    """Documents (strings) or conversations (dicts) in one file or in the files of a folder.

    Args:
        path: File, or folder of files of one kind: .txt, .md, .jsonl (these also .gz, .zst, .bz2 or .xz) or .parquet.
        column: 'text' for documents, 'messages' for conversations, 'tokens' for a folder of prepared shards.
        seed: Order of the training epochs.
        validation: Name of the file to validate with; None goes by the names of the files, see `splits`.
    """

    def __init__(self, path: str | Path, column: Column = "text", seed: int = 0, validation: str | None = None) -> None:
        super().__init__(path, column, seed)
        self.validation_name = validation
        first = self.split.files[0]  # also looks whether there is anything
        if column == "messages" and family_of(first) == ".txt":
            raise UserError(f"'{self.path}': conversations need .jsonl or .parquet files with 'messages', not text")

    def find_split(self) -> FileSplit:
        """Which files train and which validate, by their names."""
        if self.column == "tokens":
            return prepared_split(self.path)
        if is_prepared(self.path):
            raise UserError(f"the folder '{self.path}' holds prepared token ids; give the folder of the text")
        return find_split(self.path, self.validation_name)

    def summary(self) -> str:
        """Which files train, which validate, how many documents they have, and what is not read."""
        found, noun = self.split, "conversations" if self.column == "messages" else "documents"
        train, val = self.num_rows("train"), self.num_rows("val")
        trains = f"trains on {_listed([self.file_name(path) for path in found.train])}: {train:,} {noun}"
        if any(text is not None and text.num_rows > 1 for text in map(_text_file, self.files)):
            trains += " (text is cut at blank lines)"
        if found.val:
            how = " (the last by name)" if found.is_by_order else ""
            validates = f"validates with {_listed([self.file_name(path) for path in found.val])}{how}: {val:,}"
        else:
            validates = f"validates with the last hundredth of {found.train[-1].name}: {val:,}"
        return f"{trains}; {validates}{self.left_out()}"

    def left_out(self) -> str:
        """What lies in the folder and is not read, to be put behind something else; empty if nothing is."""
        names = self.split.left_out
        return f"; left out: {_listed(names, most=12)}" if names else ""


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


def _text_file(file: RecordFile) -> TextFile | None:
    """The text file, compressed or not, that a file is."""
    plain = file.plain if isinstance(file, CompressedFile) else file
    return plain if isinstance(plain, TextFile) else None


def _cut_for_validation(file: RecordFile) -> None:
    """Cut a text file that has to validate, too, into about a hundred documents if it is short."""
    if (text := _text_file(file)) is not None:
        text.layout = min(TXT_BYTES, max(SHORTEST_DOCUMENT, text.path.stat().st_size // 100))


def _listed(names: Sequence[str], most: int = 4) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"

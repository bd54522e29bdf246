"""Sources of text or conversation files: splits, order and distribution over ranks.

`splits` selects the validation files; without any, the last 1% of the last file is used. Records are assigned to ranks
by their position in the order of the epoch.
"""

import logging
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nanochat_lit.common.downloads import file_sha256, locked
from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.paths import cache_folder
from nanochat_lit.data.cursor import Block, BlockCursor
from nanochat_lit.data.prepared import PreparedFile, is_prepared, prepared_split
from nanochat_lit.data.records import RecordFile
from nanochat_lit.data.source import Split, TextSource
from nanochat_lit.data.splits import FileSplit, find_split
from nanochat_lit.data.text_files import TXT_BYTES, CompressedFile, TextFile, family_of, record_file

Column = Literal["text", "messages", "tokens"]
SPLITS = ("train", "val", "all")
SHORTEST_DOCUMENT = 100
"""Document size in bytes for splitting a single short text file."""
THOROUGH_CHECK_BYTES = 512 * 2**20
VALIDATION_FRACTION = 0.01
_log = logging.getLogger(__name__)


class ShardSource(TextSource):
    """Records of files; the last files, or the last 1% of the last file, are for validation.

    Args:
        path: File or folder, for messages.
        column: 'text' for documents, 'messages' for conversations, 'tokens' for a folder of prepared shards.
        seed: Seed of the order of training epochs.
        window: Files whose blocks are shuffled together; None for all.
    """

    def __init__(self, path: str | Path, column: Column = "text", seed: int = 0, window: int | None = None) -> None:
        self.path = Path(path)
        self.column: Column = column
        self.field: str = column
        """Column or field to read."""
        self.seed = seed
        self.window = window
        self.num_skipped = 0
        """Number of skipped records so far: null, empty, or not usable as text."""
        self._order: tuple[tuple[str, int, int], list[Block]] | None = None

    @property
    def name(self) -> str:
        """Path of the source."""
        return f"'{self.path}'"

    @cached_property
    def split(self) -> FileSplit:
        """Training and validation files."""
        return self.find_split()

    @cached_property
    def files(self) -> list[RecordFile]:
        """Files, validation files last."""
        tokens = self.column == "tokens"
        files = [PreparedFile(path) if tokens else record_file(path, self.field) for path in self.split.files]
        if files and not self.split.val and self.split.train:
            _cut_for_validation(files[-1])
        return files

    @abstractmethod
    def find_split(self) -> FileSplit:
        """Return the training and validation files."""

    def file_name(self, path: Path) -> str:
        """Return the name of a file relative to the folder."""
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) and path != self.path else path.name

    def fingerprint(self) -> str:
        """Digest of file names, lengths and text splitting, which determine positions."""
        lines = []
        for file in self.files:
            text = _text_file(file)
            cut = f" {text.layout}" if text is not None and text.layout != TXT_BYTES else ""
            lines.append(f"{self.file_name(file.path)} {file.path.stat().st_size}{cut}")
        return "\n".join(lines)

    def num_rows(self, split: Split, enough: int | None = None) -> int:
        """Return the number of records of a split, including null and empty ones; stops counting at `enough`."""
        count = 0
        for _, start, stop in self._ranges(split):
            count += stop - start
            if enough is not None and count >= enough:
                break
        return count

    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Yield every item of a split once, in the order of the files."""
        for file, first, last in self._ranges(split):
            for start, stop in self.opened(file).blocks():
                if rows := range(max(start, first), min(stop, last)):
                    yield from (item for item in self.read(file, rows) if item is not None)

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the items of one epoch for `rank`; 'train' is shuffled by seed and epoch."""
        return self.cursor(split, rank, world_size).epoch_items(epoch)

    def cursor(self, split: str, rank: int, world_size: int) -> BlockCursor:
        """Return a cursor."""
        return BlockCursor(self, split, rank, world_size)

    def check(self) -> None:
        """Open every file and read up to 512 MiB; a UserError names a damaged file and, if known, the record."""
        size = sum(file.path.stat().st_size for file in self.files)
        thorough = size <= THOROUGH_CHECK_BYTES
        num_items = [file.check(thorough) for file in self.files]
        for split in ("train", "val"):
            self.num_rows(split)
        if thorough and not sum(num_items[: len(self.split.train)]):
            files = self.files[: len(self.split.train)]
            names = f"{_listed([self.file_name(file.path) for file in files])} in " if len(files) > 1 else ""
            raise UserError(
                f"all {sum(file.num_rows for file in files):,} records of {names}{self.name} are null or empty in "
                f"{self.field!r}"
            )
        self._check_duplicates()

    def _check_duplicates(self) -> None:
        """Warn about training files with equal contents, and raise UserError for one equal to the validation file."""
        sizes = Counter(file.path.stat().st_size for file in self.files)
        first: dict[str, Path] = {}
        for path in (file.path for file in self.files):
            size = path.stat().st_size
            if not size or sizes[size] == 1 or (other := first.setdefault(file_sha256(path), path)) is path:
                continue
            if path in self.split.val:
                raise UserError(
                    f"'{path}', which is for validation, has the same content as '{other}': "
                    "validation would measure memorization; remove one of them, or choose another validation file"
                )
            _log.warning("'%s' has the same content as '%s'; it is read twice per epoch", path, other)

    def validation(self) -> dict[str, str]:
        """Return the sha256 of the validation files by name."""
        paths = [self.opened(file).path for file in self._split_files("val")]
        return {self.file_name(path): file_sha256(path) for path in paths}

    def opened(self, file: int) -> RecordFile:
        """Return a file by index."""
        return self.files[file]

    def num_windows(self, split: str) -> int:
        """Return the number of windows of an epoch; see `BlockCursor`."""
        return 1 if self.window is None or split != "train" else -(-len(self._split_files(split)) // self.window)

    def blocks(self, split: str, epoch: int, window: int) -> list[Block]:
        """Return the blocks of a window in the order of the epoch; caches one list."""
        key = (split, epoch if split == "train" else 0, window)
        if self._order is None or self._order[0] != key:
            self._order = key, self._ordered_blocks(*key)
        return self._order[1]

    def rows(self, split: str, epoch: int, block: Block) -> Sequence[int]:
        """Return the record indices of a block in the order of the epoch."""
        file, start, stop = block
        if split != "train" or stop - start == 1:
            return range(start, stop)
        rows = list(range(start, stop))
        random.Random(f"{self.seed}-{epoch}-{file}-{start}").shuffle(rows)
        return rows

    def read(self, file: int, rows: Sequence[int]) -> Iterator[Any]:
        """Yield items of records of one block; None for null and empty ones, which are counted."""
        for item in self.opened(file).read(rows):
            self.num_skipped += item is None
            yield item

    def file_order(self, split: str, epoch: int) -> list[int]:
        """Return the files of a split in the order of an epoch; shuffled only with windows."""
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
                f"{self.name} has no training file: by its name, {names} belongs to the {kind} split; "
                "give the file itself as the path, or rename it"
            )
        if split == "train":
            return list(files[: len(found.train)])
        return list(files[len(found.train) :] or files[-1:])

    def _ranges(self, split: str, chosen: Sequence[int] | None = None) -> Iterator[tuple[int, int, int]]:
        """Yield (file, first record, last record + 1) of a split, or of some of its files."""
        is_shared = split != "all" and not self.split.val
        total = 0
        for file in self.file_order(split, 0) if chosen is None else chosen:
            num_rows = self.opened(file).num_rows
            total += num_rows
            start, stop = 0, num_rows
            if is_shared and file == len(self.files) - 1:  # the last 1% is for validation
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
            return f"{self.name} has no records ({names}); give files with documents"
        why = " (the last by name)" if self.split.is_by_order else ""
        return f"{names} in {self.name} is the validation file{why}, but has no records; fill it, remove it, or set --data.validation"


class FileSource(ShardSource):
    """Documents (strings) or conversations (dicts) of a file or folder.

    Args:
        path: File, or folder of files of one type: .txt, .md, .jsonl (these also .gz, .zst, .bz2 or .xz) or .parquet.
        column: 'text' for documents, 'messages' for conversations, 'tokens' for a folder of prepared shards.
        seed: Seed of the order of training epochs.
        validation: Name of the validation file; None decides by the file names, see `splits`.
    """

    def __init__(self, path: str | Path, column: Column = "text", seed: int = 0, validation: str | None = None) -> None:
        super().__init__(path, column, seed)
        self.validation_name = validation
        first = self.split.files[0]  # also checks that there are files
        if column == "messages" and family_of(first) == ".txt":
            raise UserError(f"'{self.path}': conversations need .jsonl or .parquet files with 'messages', not text")

    def find_split(self) -> FileSplit:
        """Return the training and validation files, by their names."""
        if self.column == "tokens":
            return prepared_split(self.path)
        if is_prepared(self.path):
            raise UserError(f"the folder '{self.path}' contains prepared token ids; give the folder of the text")
        return find_split(self.path, self.validation_name)

    def summary(self) -> str:
        """Describe the training and validation files, their document counts, and the ignored entries."""
        found, noun = self.split, "conversations" if self.column == "messages" else "documents"
        train, val = self.num_rows("train"), self.num_rows("val")
        trains = f"trains on {_listed([self.file_name(path) for path in found.train])}: {train:,} {noun}"
        if any(text is not None and text.num_rows > 1 for text in map(_text_file, self.files)):
            trains += " (text is split at blank lines)"
        if found.val:
            how = " (the last by name)" if found.is_by_order else ""
            validates = f"validates with {_listed([self.file_name(path) for path in found.val])}{how}: {val:,}"
        else:
            validates = f"validates with the last 1% of {found.train[-1].name}: {val:,}"
        return f"{trains}; {validates}{self.left_out()}"

    def left_out(self) -> str:
        """Return a suffix that lists the ignored entries of the folder; empty if there are none."""
        names = self.split.left_out
        return f"; ignored: {_listed(names, most=12)}" if names else ""


class TinyWorld(ShardSource):
    """Generated English texts for models with few layers.

    Args:
        num_documents: Number of training documents.
        seed: Seed of the texts and of their order.
        folder: Folder of the files; None is a folder of the user's cache.
    """

    def __init__(self, num_documents: int = 20_000, seed: int = 0, folder: str | None = None) -> None:
        check_at_least_one(num_documents=num_documents)
        self.num_documents = num_documents
        self.folder = Path(folder) if folder else cache_folder() / "tiny_world" / f"{num_documents}-{seed}"
        super().__init__(self.folder / "pretrain", seed=seed)

    def prepare(self, mirror: str | None = None) -> None:
        """Write the files, unless they exist."""
        from nanochat_lit.tiny_world.files import write_tiny_world  # importing its templates takes 60 ms

        del mirror
        done = self.folder / "harder" / "test.jsonl"  # written last
        with locked(self.folder.with_name(f".{self.folder.name}.lock")):
            if not done.is_file():
                write_tiny_world(self.folder, self.num_documents, num_conversations=1, per_category=1, seed=self.seed)

    def find_split(self) -> FileSplit:
        """Return the shards; the last one is for validation."""
        files = sorted(self.path.glob("shard_*.parquet"))
        if not files:
            raise UserError(f"'{self.path}' has no shards yet; they are written by prepare()")
        return FileSplit(train=files[:-1], val=files[-1:])


def text_column(path: object) -> Column:
    """Return 'tokens' for a folder of prepared shards, else 'text'."""
    return "tokens" if is_prepared(path) else "text"


def check_source(path: str | Path, column: Column = "text") -> FileSource:
    """Open a source and check that every file can be read, before training starts; see `ShardSource.check`."""
    source = FileSource(path, column)
    source.check()
    return source


def documents(path: str | Path, split: Split = "all") -> Iterator[str]:
    """Yield the texts of a file or folder once, in order."""
    return FileSource(path, "text").documents(split)


def _text_file(file: RecordFile) -> TextFile | None:
    """Return the text file, compressed or not, of a record file."""
    plain = file.plain if isinstance(file, CompressedFile) else file
    return plain if isinstance(plain, TextFile) else None


def _cut_for_validation(file: RecordFile) -> None:
    """Split a short text file that is also used for validation into about a hundred documents."""
    if (text := _text_file(file)) is not None:
        text.layout = min(TXT_BYTES, max(SHORTEST_DOCUMENT, text.path.stat().st_size // 100))


def _listed(names: Sequence[str], most: int = 4) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"

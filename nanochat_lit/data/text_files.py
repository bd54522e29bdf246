"""Text and .jsonl files, compressed or not, and the supported file types by case-insensitive suffix.

These files are indexed once by byte offsets. A compressed file is unpacked once into the user's cache.
"""

import codecs
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.downloads import locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import UNPACK_ERRORS, atomic_write, cache_folder, is_compressed, open_unpacked
from nanochat_lit.data.records import SHAREGPT, ParquetFile, RecordFile, other_name, readable

TXT_BYTES = 10_000
"""Size of a text document in bytes after which it ends at the next blank line; the maximum is twice this size."""
ROW_GROUP_SIZE = 1024
"""Records per row group of an unpacked copy."""
_MAX_BLOCKS = 2**18


class IndexedFile(RecordFile):
    """Records by byte offset; keeps two integers per record in memory."""

    layout = 0
    """Version of the splitting into records."""
    keeps_blank = False
    """Whether blank records are kept."""

    @property
    def num_rows(self) -> int:
        """Number of records."""
        return len(self._offsets) // 2

    def blocks(self) -> list[tuple[int, int]]:
        """Return ranges of records."""
        # One record per block for a full shuffle, unless the list of blocks would be large.
        size = max(1, self.num_rows // _MAX_BLOCKS)
        return [(start, min(start + size, self.num_rows)) for start in range(0, self.num_rows, size)]

    def read(self, rows: Sequence[int]) -> Iterator[Any]:
        """Yield items of records in the given order."""
        offsets = self._offsets
        self.check_unchanged()
        with readable(self.path), self.path.open("rb") as file:
            for row in rows:
                start, stop = offsets[2 * row], offsets[2 * row + 1]
                file.seek(start)
                yield self.parse(file.read(stop - start), start)

    def parse(self, data: bytes, start: int) -> Any:
        """Parse the bytes of one record, which starts at byte `start`."""
        raise NotImplementedError

    def scan(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield the bytes of each record in order."""
        raise NotImplementedError

    def scanned(self) -> Iterator[tuple[int, bytes]]:
        """Yield the start and bytes of each record; positions refer to the unpacked text of a compressed file."""
        file, start = open_unpacked(self.path)
        with file:
            for data in self.scan(file):
                if self.keeps_blank or data.strip():
                    yield start, data
                start += len(data)

    @cached_property
    def _offsets(self) -> "array[int]":
        self.check_unchanged()
        with readable(self.path):
            return array("q", (at for start, data in self.scanned() for at in (start, start + len(data))))


class TextFile(IndexedFile):
    r"""A text file: one document, or, above `layout` bytes, documents split at blank lines.

    Paragraphs are joined until they reach that size. A paragraph larger than twice the size is split at a line end, a
    line at a character. Concatenated, the documents are the file; line ends become \n.
    """

    layout = TXT_BYTES
    keeps_blank = True

    def scan(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield the documents."""
        most = 2 * self.layout
        document = b""
        blank_before = False
        for line in _lines(file, most):
            blank = not line.strip()
            at_paragraph = blank_before and not blank
            if document and ((len(document) >= self.layout and at_paragraph) or len(document) + len(line) > most):
                yield document
                document = b""
            document += line
            blank_before = blank
        if document:
            yield document

    def parse(self, data: bytes, start: int) -> str | None:
        """Parse a document."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"'{self.path}' is not UTF-8 text (byte {start + error.start}); convert it") from None
        return self.item(text.replace("\r\n", "\n"), {}, lambda: f"{self.path}, byte {start}")


class JsonlFile(IndexedFile):
    """A .jsonl file: one JSON object per line; blank lines are skipped."""

    def scan(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield the lines."""
        return iter(file)

    def parse(self, data: bytes, start: int) -> Any:
        """Parse a line."""

        def where() -> str:  # the line number requires a scan of the file, so it is computed only for errors
            file, first = open_unpacked(self.path)
            with file:
                ends = accumulate(map(len, file), initial=first)
                return f"{self.path}:{next(number for number, end in enumerate(ends) if end > start)}"

        try:
            text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")  # left by concatenated files
            row = json.loads(text)
        except UnicodeDecodeError as error:
            raise UserError(f"{where()}: not UTF-8 text (byte {error.start} of the line); convert it") from None
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{where()}: not valid JSON ({reason})") from None
        column = self.column
        if not isinstance(row, dict):
            raise UserError(f"{where()}: expected an object with {column!r}, got {text.strip()[:60]}")
        if column == "messages" and column not in row and SHAREGPT in row:
            column = SHAREGPT
        if column not in row:
            fields = ", ".join(map(repr, row)) or "none"
            raise UserError(f"{where()}: no field {column!r} (fields: {fields}){other_name(column, row)}")
        if "\\ud" in text or "\\uD" in text:  # only an escape can produce a lone surrogate in valid UTF-8
            raw = json.dumps(row, ensure_ascii=False).encode("utf-16", "surrogatepass")
            row = json.loads(raw.decode("utf-16", "replace"))
        return self.item(row[column], row, where)


class CompressedFile(RecordFile):
    """Records of a compressed file; the unpacked copy is a parquet file of their bytes."""

    def __init__(self, plain: IndexedFile) -> None:
        super().__init__(plain.path, plain.column)
        self.plain = plain

    def blocks(self) -> list[tuple[int, int]]:
        """Return the row groups of the unpacked copy."""
        return self._unpacked.blocks()

    def read(self, rows: Sequence[int]) -> Iterator[object]:
        """Yield items of records of one block."""
        unpacked = self._unpacked
        self.check_unchanged()
        found = unpacked.values(rows, ["start", "data"])
        for start, data in zip(found["start"], found["data"], strict=True):
            yield self.plain.parse(data, start)

    @cached_property
    def _unpacked(self) -> ParquetFile:
        self.check_unchanged()
        about = self.path.stat()
        place = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        name = f"{place}-{about.st_size}-{about.st_mtime_ns}-{self.plain.layout}.parquet"
        copy = cache_folder() / "unpacked" / name
        if not copy.is_file():
            with locked(copy.with_name(f"{place}.lock")):
                if not copy.is_file():
                    for stale in copy.parent.glob(f"{place}-*.parquet"):
                        stale.unlink()
                    self._unpack(copy)
        return ParquetFile(copy, "data")

    def _unpack(self, copy: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([("start", pyarrow.int64()), ("data", pyarrow.binary())])
        try:
            with atomic_write(copy) as out, pyarrow.parquet.ParquetWriter(out, schema, compression="zstd") as writer:
                records = self.plain.scanned()
                while group := list(islice(records, ROW_GROUP_SIZE)):
                    writer.write_table(pyarrow.table(list(zip(*group, strict=True)), schema=schema))
        except (*UNPACK_ERRORS, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"'{self.path}' cannot be unpacked into '{copy.parent}' ({reason}); "
                "if it is damaged, download it again; set XDG_CACHE_HOME to use another folder"
            ) from None


FAMILIES = {
    ".txt": ".txt", ".text": ".txt", ".md": ".txt", ".markdown": ".txt",
    ".jsonl": ".jsonl", ".ndjson": ".jsonl", ".jsonlines": ".jsonl",
    ".parquet": ".parquet",
}  # fmt: skip
FAMILIES_IN_WORDS = ".txt, .md, .jsonl (also .gz, .zst, .bz2, .xz) or .parquet"


def family_of(path: Path) -> str | None:
    """Return the format of a file (.txt, .jsonl or .parquet); None if it is not supported."""
    is_packed = is_compressed(path)
    family = FAMILIES.get(Path(path.stem if is_packed else path).suffix.lower())
    return None if is_packed and family == ".parquet" else family


def record_file(path: Path, column: str) -> RecordFile:
    """Return a file of documents or conversations, without opening it."""
    family = family_of(path)
    assert family is not None, "the file type is supported"
    if family == ".parquet":
        return ParquetFile(path, column)
    plain = TextFile(path, column) if family == ".txt" else JsonlFile(path, column)
    return CompressedFile(plain) if is_compressed(path) else plain


def _lines(file: IO[bytes], most: int) -> Iterator[bytes]:
    """Yield the lines; lines longer than `most` bytes in chunks that end at character boundaries."""
    rest = b""
    while line := rest + file.readline(most - len(rest)):
        end = len(line)
        if end == most and not line.endswith(b"\n"):
            end = codecs.utf_8_decode(line, "ignore", False)[1]  # without an incomplete character
        yield line[:end]
        rest = line[end:]

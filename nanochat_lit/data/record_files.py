"""Random access to the records of text and .jsonl files; see parquet_file.py and compressed_files.py for others.

A record is one document. Text and jsonl files are indexed once by byte offsets, so that records can be read in any
order by any rank. Errors are UserErrors that name the file and the record.
"""

import codecs
import json
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.compressed import open_unpacked
from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.chat import validate_conversation
from nanochat_lit.tokenizer.foreign_chat import as_conversation

TXT_BYTES = 10_000
"""Size of a text document in bytes after which it ends at the next blank line; the maximum is twice this size."""
_MAX_BLOCKS = 2**18
_QUICK_CHECK_ROWS = 1000
SHAREGPT = "conversations"
"""ShareGPT's name of `messages`."""
_OTHER_NAMES = {
    "text": ("content", "contents", "document", "body", "article", "raw_content", "page_content"),
    "messages": ("conversation", "dialogue", "dialog", "chat", "turns"),
}
"""Alternative column names, for a hint."""


MAX_DOC_CHARS = 10_000_000
"""Maximum length of a text; tokenizing a longer one would take minutes and many times its size in memory."""
_LOOK_CHARS = 1000
_MAX_CONTROL_SHARE = 0.1
_FEW_CONTROLS = 8
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_log = logging.getLogger(__name__)


class TextCheck:
    """Checks the records of one file or stream, and logs the first skipped record of each kind.

    Args:
        column: Column of the text, for messages.
        place: Kind of source, for messages.
    """

    def __init__(self, column: str, place: str = "file") -> None:
        self._column = column
        self._place = place
        self._warned: set[str] = set()

    def text(self, value: Any, where: Callable[[], str]) -> str | None:
        """Return the text of a record; None if it is null, empty, binary, not UTF-8, or longer than MAX_DOC_CHARS.

        Args:
            value: Value of the column.
            where: Returns the location of the record.

        Raises:
            UserError: If the value cannot be text.
        """
        if value is None or value in ("", b""):
            return None
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                return self._pass_over(where, "is not UTF-8 text")
        if not isinstance(value, str):
            raise UserError(f"{where()}: {self._column!r} is {type(value).__name__}, expected a string")
        if len(value) > MAX_DOC_CHARS:
            return self._pass_over(where, f"is longer than {MAX_DOC_CHARS:,} characters")
        start = value[:_LOOK_CHARS]
        if len(_CONTROL.findall(start)) > max(_FEW_CONTROLS, _MAX_CONTROL_SHARE * len(start)):
            return self._pass_over(where, "looks like binary data, not text")
        return value

    def _pass_over(self, where: Callable[[], str], reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            message = "%s: %r %s; such records of this %s are skipped"
            _log.warning(message, where(), self._column, reason, self._place)


class RecordFile:
    """Base class: records by index, in blocks that are efficient to read together."""

    def __init__(self, path: Path, column: str) -> None:
        self.path = path
        self.column = column
        self._stamp: tuple[int, int] | None = None
        self._texts = TextCheck(column)
        self.num_elsewhere = 0
        """Number of records read so far without `messages` but with ShareGPT's column."""

    @property
    def num_rows(self) -> int:
        """Number of records of the file, including null and empty ones."""
        raise NotImplementedError

    def blocks(self) -> list[tuple[int, int]]:
        """Return ranges of records (start, stop) that are contiguous on disk, in order."""
        raise NotImplementedError

    def read(self, rows: Sequence[int]) -> Iterator[Any]:
        """Yield items of records within one block, in the given order; None for a null or empty record."""
        raise NotImplementedError

    def check(self, thorough: bool) -> int:
        """Raise UserError if the file is damaged or lacks the column; `thorough` reads every record.

        Returns:
            Number of items among the records that were read.
        """
        blocks = self.blocks()
        if not thorough and blocks:
            blocks = sorted({blocks[0], blocks[-1], *blocks[: _QUICK_CHECK_ROWS // (blocks[0][1] - blocks[0][0])]})
        num_items = sum(item is not None for start, stop in blocks for item in self.read(range(start, stop)))
        if num_items and self.num_elsewhere:
            raise UserError(
                f"'{self.path}' has {self.num_elsewhere:,} records with null or empty {self.column!r} and the "
                f"conversation in {SHAREGPT!r}; use one name for all of them"
            )
        return num_items

    def item(self, value: Any, row: dict[str, Any], where: Callable[[], str]) -> Any:
        """Return the text or conversation of a record after checking its type; None if null, empty or not usable."""
        if value is None or value in ("", []):
            self.num_elsewhere += self.column == "messages" and bool(row.get(SHAREGPT))
            return None
        if self.column == "messages":
            try:
                conversation = as_conversation(row)
                validate_conversation(conversation, "")
            except UserError as error:
                raise UserError(f"{where()}{error}") from None
            return conversation
        return self._texts.text(value, where)

    def check_unchanged(self) -> None:
        """Raise UserError if the file has changed since it was first opened."""
        try:
            about = self.path.stat()
        except OSError as error:
            raise UserError(f"'{self.path}' cannot be read ({error.strerror})") from None
        stamp = (about.st_size, about.st_mtime_ns)
        if self._stamp is None:
            self._stamp = stamp
        elif stamp != self._stamp:
            raise UserError(f"'{self.path}' has changed while it was in use; start again, and do not modify it")


class IndexedFile(RecordFile):
    """Records by byte offset; keeps two integers per record in memory."""

    layout = 0
    """Version of the splitting into records."""

    def __init__(self, path: Path, column: str) -> None:
        super().__init__(path, column)
        self._index: array[int] | None = None

    @property
    def num_rows(self) -> int:
        """Number of records."""
        return len(self._offsets()) // 2

    def blocks(self) -> list[tuple[int, int]]:
        """Return ranges of records."""
        # One record per block for a full shuffle, unless the list of blocks would be large.
        size = max(1, self.num_rows // _MAX_BLOCKS)
        return [(start, min(start + size, self.num_rows)) for start in range(0, self.num_rows, size)]

    def read(self, rows: Sequence[int]) -> Iterator[Any]:
        """Yield items of records in the given order."""
        offsets = self._offsets()
        self.check_unchanged()
        try:
            with self.path.open("rb") as file:
                for row in rows:
                    start, stop = offsets[2 * row], offsets[2 * row + 1]
                    file.seek(start)
                    data = file.read(stop - start)
                    if len(data) < stop - start:
                        raise UserError(f"'{self.path}' became shorter while it was in use; start again")
                    yield self.parse(data, start)
        except OSError as error:
            raise UserError(f"'{self.path}' cannot be read ({error.strerror})") from None

    def parse(self, data: bytes, start: int) -> Any:
        """Parse the bytes of one record, which starts at byte `start`."""
        raise NotImplementedError

    def scan(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield the bytes of each record in order; blank ones are skipped."""
        raise NotImplementedError

    def scanned(self) -> Iterator[tuple[int, bytes]]:
        """Yield the start and bytes of each record; positions refer to the unpacked text of a compressed file."""
        file, start = open_unpacked(self.path)
        with file:
            for data in self.scan(file):
                if not self.is_blank(data):
                    yield start, data
                start += len(data)

    def is_blank(self, data: bytes) -> bool:
        """Return whether `scan` skips these bytes."""
        return not data.strip()

    def _offsets(self) -> "array[int]":
        if self._index is None:
            self.check_unchanged()
            try:
                self._index = array("q", (at for start, data in self.scanned() for at in (start, start + len(data))))
            except OSError as error:
                raise UserError(f"'{self.path}' cannot be read ({error.strerror})") from None
        return self._index


class TextFile(IndexedFile):
    r"""A text file: one document, or, above `layout` bytes, documents split at blank lines.

    Paragraphs are joined until they reach that size. A paragraph larger than twice the size is split at a line end, a
    line at a character. Concatenated, the documents are the file; line ends become \n.
    """

    layout = TXT_BYTES

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

    def is_blank(self, data: bytes) -> bool:
        """Return False: every document is a record."""
        return not data

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
        # The line number requires a scan of the file, so it is computed only for errors.
        return parse_json_row(data, self, lambda: self._where(start))

    def _where(self, start: int) -> str:
        file, first = open_unpacked(self.path)
        with file:
            line_number = 1 + sum(chunk.count(b"\n") for chunk in _chunks(file, start - first))
        return f"{self.path}:{line_number}"


def parse_json_row(data: bytes, file: RecordFile, where: Callable[[], str]) -> Any:
    """Parse one line of JSON.

    Args:
        data: The line.
        file: File of the line.
        where: Returns the location, for errors.
    """
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")  # left by concatenated files
        row = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where()}: not UTF-8 text (byte {error.start} of the line); convert it") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{where()}: not valid JSON ({reason})") from None
    column = file.column
    if not isinstance(row, dict):
        raise UserError(f"{where()}: expected an object with {column!r}, got {text.strip()[:60]}")
    if column == "messages" and column not in row and SHAREGPT in row:
        column = SHAREGPT
    if column not in row:
        fields = ", ".join(map(repr, row)) or "none"
        raise UserError(f"{where()}: no field {column!r} (fields: {fields}){other_name(column, row)}")
    if "\\ud" in text or "\\uD" in text:  # only an escape can produce a lone surrogate in valid UTF-8
        row = _without_lone_surrogates(row)
    return file.item(row[column], row, where)


def other_name(column: str, names: Iterable[str]) -> str:
    """Return a hint about an alternative column name among `names`; empty if there is none."""
    other = next((name for name in names if name in _OTHER_NAMES.get(column, ())), None)
    return f"; if {other!r} has the {column}, rename it" if other else ""


def _lines(file: IO[bytes], most: int) -> Iterator[bytes]:
    """Yield the lines; lines longer than `most` bytes in chunks that end at character boundaries."""
    rest = b""
    while line := rest + file.readline(most - len(rest)):
        end = len(line)
        if end == most and not line.endswith(b"\n"):
            end -= _incomplete_tail(line)
        yield line[:end]
        rest = line[end:]


def _incomplete_tail(line: bytes) -> int:
    """Return the number of bytes of an incomplete UTF-8 character at the end of `line`."""
    for back in range(1, min(4, len(line))):
        byte = line[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0


def _chunks(file: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0 and (chunk := file.read(min(num_bytes, 2**20))):
        num_bytes -= len(chunk)
        yield chunk


def _without_lone_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_lone_surrogates(item) for key, item in value.items()}
    return value

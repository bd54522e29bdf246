"""One file of documents or conversations, read by row: .txt or .jsonl; .parquet and compressed ones have files of their own.

A row is one document. Text and jsonl files are indexed once by byte offsets, so that any row can be read without the
ones before it, in any order and by any rank. Errors are UserErrors that name the file and the row.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.text_check import TextCheck
from nanochat_lit.tokenizer.chat import validate_conversation
from nanochat_lit.tokenizer.foreign_chat import as_conversation

TXT_SOFT_BYTES = 10_000
TXT_HARD_BYTES = 20_000
_MAX_BLOCKS = 2**18
_QUICK_CHECK_ROWS = 1000
SHAREGPT = "conversations"
"""What ShareGPT's rows have instead of `messages`."""


class RecordFile:
    """What the three kinds share: rows by number, in blocks that are cheap to read at once."""

    def __init__(self, path: Path, column: str) -> None:
        self.path = path
        self.column = column
        self._stamp: tuple[int, int] | None = None
        self._texts = TextCheck(column)

    @property
    def num_rows(self) -> int:
        """Rows of the file, null and empty ones included."""
        raise NotImplementedError

    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of rows (start, stop) that belong together on disk, in order."""
        raise NotImplementedError

    def read(self, rows: Sequence[int]) -> Iterator[Any]:
        """Items of rows within one block, in the order asked for; None for a null or empty row."""
        raise NotImplementedError

    def check(self, thorough: bool) -> None:
        """Raise UserError if the file is damaged or lacks the column; `thorough` reads every row."""
        blocks = self.blocks()
        if not thorough and blocks:
            blocks = sorted({blocks[0], blocks[-1], *blocks[: _QUICK_CHECK_ROWS // (blocks[0][1] - blocks[0][0])]})
        for start, stop in blocks:
            for _ in self.read(range(start, stop)):
                pass

    def item(self, value: Any, row: dict[str, Any], where: Callable[[], str]) -> Any:
        """The text or conversation of a row after checking its type; None if null, empty or no text to learn from."""
        if value is None or value in ("", []):
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
        """Raise UserError if the file is not the one that was looked at first."""
        try:
            about = self.path.stat()
        except OSError as error:
            raise UserError(f"'{self.path}' cannot be read ({error.strerror})") from None
        stamp = (about.st_size, about.st_mtime_ns)
        if self._stamp is None:
            self._stamp = stamp
        elif stamp != self._stamp:
            raise UserError(f"'{self.path}' has changed while it was in use; start again, and keep it as it is")


class _IndexedFile(RecordFile):
    """Rows by byte offset; two ints a row are kept in memory."""

    def __init__(self, path: Path, column: str) -> None:
        super().__init__(path, column)
        self._index: array[int] | None = None

    @property
    def num_rows(self) -> int:
        return len(self._offsets()) // 2

    def blocks(self) -> list[tuple[int, int]]:
        # One row a block, so that an epoch is a full shuffle, until that would make the list of blocks large.
        size = max(1, self.num_rows // _MAX_BLOCKS)
        return [(start, min(start + size, self.num_rows)) for start in range(0, self.num_rows, size)]

    def read(self, rows: Sequence[int]) -> Iterator[Any]:
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
        """The item in the bytes of one row, which begins at byte `start`."""
        raise NotImplementedError

    def scan(self, file: IO[bytes]) -> Iterator[tuple[int, int]]:
        """Byte ranges of the rows."""
        raise NotImplementedError

    def _offsets(self) -> "array[int]":
        if self._index is None:
            self.check_unchanged()
            try:
                with self.path.open("rb") as file:
                    self._index = array("q", (offset for pair in self.scan(file) for offset in pair))
            except OSError as error:
                raise UserError(f"'{self.path}' cannot be read ({error.strerror})") from None
        return self._index


class TextFile(_IndexedFile):
    """A .txt file: one document, or, above 10,000 bytes, documents cut at blank lines.

    Paragraphs are joined until they reach 10,000 bytes; a paragraph that goes beyond 20,000 is cut at a line end, a
    line at a character. The documents joined are the file, byte for byte.
    """

    def scan(self, file: IO[bytes]) -> Iterator[tuple[int, int]]:
        """Byte ranges of the documents."""
        start = end = 0
        blank_before = False
        while line := file.readline(TXT_HARD_BYTES):
            size = end - start
            blank = not line.strip()
            at_paragraph = blank_before and not blank
            if size and ((size >= TXT_SOFT_BYTES and at_paragraph) or size + len(line) > TXT_HARD_BYTES):
                yield start, end
                start = end
            if len(line) == TXT_HARD_BYTES and not line.endswith(b"\n"):
                extra = _incomplete_tail(line)
                line = line[: len(line) - extra]
                file.seek(-extra, 1)
            end += len(line)
            blank_before = blank
        if end > start:
            yield start, end

    def parse(self, data: bytes, start: int) -> str | None:
        """The document."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"'{self.path}' is not UTF-8 text (byte {start + error.start}); convert it") from None
        return self.item(text, {}, lambda: f"{self.path}, byte {start}")


class JsonlFile(_IndexedFile):
    """A .jsonl file: one JSON object a line; blank lines are passed over."""

    def scan(self, file: IO[bytes]) -> Iterator[tuple[int, int]]:
        """Byte ranges of the lines."""
        start = 0
        for line in file:
            if line.strip():
                yield start, start + len(line)
            start += len(line)

    def parse(self, data: bytes, start: int) -> Any:
        """The item of a line."""
        # The line number costs a scan of the file, so it is worked out only for an error.
        return parse_json_row(data, self, lambda: self._where(start))

    def _where(self, start: int) -> str:
        with self.path.open("rb") as file:
            line_number = 1 + sum(chunk.count(b"\n") for chunk in _chunks(file, start))
        return f"{self.path}:{line_number}"


def parse_json_row(data: bytes, file: RecordFile, where: Callable[[], str]) -> Any:
    """The item in one line of JSON.

    Args:
        data: The line.
        file: Whose item it is.
        where: Names the place, for errors.
    """
    try:
        text = data.decode("utf-8")
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
        raise UserError(f"{where()}: no field {column!r} (fields: {', '.join(map(repr, row)) or 'none'})")
    if "\\ud" in text or "\\uD" in text:  # only an escape can bring a lone surrogate into valid UTF-8
        row = _without_lone_surrogates(row)
    return file.item(row[column], row, where)


def _incomplete_tail(line: bytes) -> int:
    """How many bytes at the end of `line` begin a UTF-8 character that is not finished there."""
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

"""Random access to the records of files: the base class, the checks of a record, and .parquet files.

A record is one document or conversation. Records can be read in any order by any rank. Errors are UserErrors that name
the file and the record. See text_files.py for text and .jsonl files.
"""

import bisect
import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.chat import validate_conversation
from nanochat_lit.tokenizer.foreign_chat import ROW_FIELDS, as_conversation

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

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
    """Checks the records of one file or stream, and logs the first skipped record of each kind."""

    def __init__(self, column: str, place: str = "file") -> None:
        self._column = column
        self._place = place
        self._warned: set[str] = set()

    def text(self, value: Any, where: Callable[[], str]) -> str | None:
        """Return the text of a record; None if it is null, empty, binary, not UTF-8, or longer than MAX_DOC_CHARS.

        A value that cannot be text raises UserError, which names the location that `where` returns.
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


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert an OSError of the block to a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror})") from None


class RecordFile(ABC):
    """Base class: records by index, in blocks that are efficient to read together."""

    def __init__(self, path: Path, column: str) -> None:
        self.path = path
        self.column = column
        self._stamp: tuple[int, int] | None = None
        self._texts = TextCheck(column)

    @property
    def num_rows(self) -> int:
        """Number of records of the file, including null and empty ones."""
        blocks = self.blocks()
        return blocks[-1][1] if blocks else 0

    @abstractmethod
    def blocks(self) -> list[tuple[int, int]]:
        """Return ranges of records (start, stop) that are contiguous on disk, in order."""

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Iterator[Any]:
        """Yield items of records within one block, in the given order; None for a null or empty record."""

    def check(self, thorough: bool) -> int:
        """Return the number of items read; UserError for a damaged file or missing column. `thorough` reads all."""
        blocks = self.blocks()
        if not thorough and blocks:
            blocks = sorted({blocks[0], blocks[-1], *blocks[: _QUICK_CHECK_ROWS // (blocks[0][1] - blocks[0][0])]})
        return sum(item is not None for start, stop in blocks for item in self.read(range(start, stop)))

    def item(self, value: Any, row: dict[str, Any], where: Callable[[], str]) -> Any:
        """Return the text or conversation of a record after checking its type; None if null, empty or not usable."""
        if self.column == "messages":
            value = value or row.get(SHAREGPT)
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
        """Raise UserError if the file has changed since it was first opened."""
        with readable(self.path):
            about = self.path.stat()
        stamp = (about.st_size, about.st_mtime_ns)
        if self._stamp is None:
            self._stamp = stamp
        elif stamp != self._stamp:
            raise UserError(f"'{self.path}' has changed while it was in use; start again, and do not modify it")


class ParquetFile(RecordFile):
    """A .parquet file; a block is a row group."""

    def blocks(self) -> list[tuple[int, int]]:
        """Return the row groups."""
        return self._groups

    @cached_property
    def _groups(self) -> list[tuple[int, int]]:
        with self._open() as file:
            about = file.metadata
            counts = (about.row_group(index).num_rows for index in range(about.num_row_groups))
            return list(pairwise(accumulate(counts, initial=0)))

    def read(self, rows: Sequence[int]) -> Iterator[Any]:
        """Yield items of rows of one row group."""
        if not rows:  # an empty row group
            return
        found = self.values(rows, ["messages", SHAREGPT, *ROW_FIELDS] if self.column == "messages" else [self.column])
        name = next(iter(found))
        for index, row in enumerate(rows):
            about = {column: values[index] for column, values in found.items()}
            yield self.item(about[name], about, lambda row=row: f"{self.path}, row {row}")

    def values(self, rows: Sequence[int], columns: list[str]) -> dict[str, list[Any]]:
        """Return the values of the existing columns for rows of one row group, in the given order."""
        import pyarrow

        index = bisect.bisect_right(self.blocks(), rows[0], key=lambda block: block[0]) - 1
        start = self.blocks()[index][0]
        places = [row - start for row in rows]
        with self._open() as file:
            try:
                columns = [name for name in columns if name in file.schema_arrow.names]
                table = file.read_row_group(index, columns=columns)
            except (pyarrow.ArrowException, OSError) as error:
                raise self._unreadable(error, f"is damaged in row group {index}") from None
        return {name: _picked(table[name], places) for name in columns}

    def _open(self) -> "pyarrow.parquet.ParquetFile":
        import pyarrow
        import pyarrow.parquet

        self.check_unchanged()
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._unreadable(error, "is not a whole parquet file") from None
        names = file.schema_arrow.names
        if self.column not in names and (self.column != "messages" or SHAREGPT not in names):
            file.close()
            listed = ", ".join(names) or "none"
            raise UserError(
                f"'{self.path}' has no column {self.column!r} (columns: {listed}){other_name(self.column, names)}"
            )
        return file

    def _unreadable(self, error: Exception, damage: str) -> UserError:
        """Convert an error of pyarrow or the system, which need not mean damage, to a UserError."""
        import pyarrow

        reason = " ".join(str(error).split())[:120]
        if isinstance(error, pyarrow.ArrowNotImplementedError):
            return UserError(
                f"'{self.path}' is not supported by pyarrow {pyarrow.__version__} ({reason}); rewrite the file"
            )
        if isinstance(error, MemoryError):
            return UserError(f"'{self.path}' needs more memory than available ({reason}); write smaller row groups")
        if isinstance(error, OSError) and error.errno:
            return UserError(f"'{self.path}' cannot be read ({error.strerror})")
        return UserError(f"'{self.path}' {damage} ({reason}); delete it and download it again")


def other_name(column: str, names: Iterable[str]) -> str:
    """Return a hint about an alternative column name among `names`; empty if there is none."""
    other = next((name for name in names if name in _OTHER_NAMES.get(column, ())), None)
    return f"; if {other!r} has the {column}, rename it" if other else ""


def _picked(column: "pyarrow.ChunkedArray", places: list[int]) -> list[Any]:
    """Return values of a column as Python objects; invalid UTF-8 as bytes, so that only that row is lost."""
    import pyarrow

    # string views, alone or within lists, do not support take
    with contextlib.suppress(pyarrow.ArrowNotImplementedError):
        column, places = column.take(pyarrow.array(places, pyarrow.int64())), list(range(len(places)))
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_bytes_or_text(value) for value in column]
    return [values[place] for place in places]


def _bytes_or_text(value: "pyarrow.Scalar") -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.cast("large_binary").as_py()

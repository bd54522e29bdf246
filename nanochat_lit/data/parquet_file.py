"""A .parquet file of documents or conversations, read by row group."""

import bisect
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.record_files import SHAREGPT, RecordFile, other_name
from nanochat_lit.tokenizer.foreign_chat import ROW_FIELDS

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


class ParquetFile(RecordFile):
    """A .parquet file; a block is a row group."""

    def __init__(self, path: Path, column: str) -> None:
        super().__init__(path, column)
        self._groups: list[tuple[int, int]] | None = None
        self._names: list[str] | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows of all row groups."""
        blocks = self.blocks()
        return blocks[-1][1] if blocks else 0

    def blocks(self) -> list[tuple[int, int]]:
        """Return the row groups."""
        if self._groups is None:
            with self._open() as file:
                start = 0
                groups = []
                for index in range(file.metadata.num_row_groups):
                    stop = start + file.metadata.row_group(index).num_rows
                    groups.append((start, stop))
                    start = stop
            self._groups = groups
        return self._groups

    def read(self, rows: Sequence[int]) -> Iterator[Any]:
        """Yield items of rows of one row group."""
        if not rows:
            return
        columns = [self.column]
        if self.column == "messages":
            columns = [name for name in (self.column, SHAREGPT, *ROW_FIELDS) if name in self.names()]
        found = self.values(rows, columns)
        name = columns[0]
        for index, row in enumerate(rows):
            about = {column: values[index] for column, values in found.items()}
            yield self.item(about[name], about, lambda row=row: f"{self.path}, row {row}")

    def names(self) -> list[str]:
        """Return the column names."""
        names = self._names
        if names is None:
            with self._open() as file:
                names = self._names = list(file.schema_arrow.names)
        return names

    def values(self, rows: Sequence[int], columns: list[str]) -> dict[str, list[Any]]:
        """Return values by column for rows of one row group, in the given order."""
        import pyarrow

        index = bisect.bisect_right(self.blocks(), rows[0], key=lambda block: block[0]) - 1
        start = self.blocks()[index][0]
        places = [row - start for row in rows]
        with self._open() as file:
            try:
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


def _picked(column: "pyarrow.ChunkedArray", places: list[int]) -> list[Any]:
    """Return values of a column as Python objects; invalid UTF-8 as bytes, so that only that row is lost."""
    import pyarrow

    with contextlib.suppress(
        pyarrow.ArrowNotImplementedError
    ):  # string views, alone or within lists, do not support take
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

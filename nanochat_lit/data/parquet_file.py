"""A .parquet file of documents or conversations, read by row group."""

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.record_files import SHAREGPT, RecordFile

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
        """Rows of all row groups."""
        blocks = self.blocks()
        return blocks[-1][1] if blocks else 0

    def blocks(self) -> list[tuple[int, int]]:
        """The row groups."""
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
        """Items of rows of one row group."""
        if not rows:
            return
        name = self.column
        if name == "messages" and name not in self.names() and SHAREGPT in self.names():
            name = SHAREGPT
        column = self.values(rows, [name])[name]
        try:
            values = column.to_pylist()
        except UnicodeDecodeError:  # as bytes, so that only the row that is no UTF-8 is lost
            values = column.cast("binary" if str(column.type) == "string" else "large_binary").to_pylist()
        for row, value in zip(rows, values, strict=True):
            yield self.item(value, {name: value}, lambda row=row: f"{self.path}, row {row}")

    def names(self) -> list[str]:
        """The columns."""
        names = self._names
        if names is None:
            with self._open() as file:
                names = self._names = list(file.schema_arrow.names)
        return names

    def values(self, rows: Sequence[int], columns: list[str]) -> "pyarrow.Table":
        """Rows of one row group, in the order asked for."""
        import pyarrow

        index = bisect.bisect_right(self.blocks(), rows[0], key=lambda block: block[0]) - 1
        start = self.blocks()[index][0]
        with self._open() as file:
            try:
                table = file.read_row_group(index, columns=columns)
                return table.take(pyarrow.array([row - start for row in rows], pyarrow.int64()))
            except (pyarrow.ArrowException, OSError) as error:
                reason = " ".join(str(error).split())[:120]
                raise UserError(
                    f"'{self.path}' is damaged in row group {index} ({reason}); delete it and get it again"
                ) from None

    def _open(self) -> "pyarrow.parquet.ParquetFile":
        import pyarrow
        import pyarrow.parquet

        self.check_unchanged()
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"'{self.path}' is not a whole parquet file ({reason}); delete it and get it again"
            ) from None
        names = file.schema_arrow.names
        if self.column not in names and (self.column != "messages" or SHAREGPT not in names):
            file.close()
            raise UserError(f"'{self.path}' has no column {self.column!r} (columns: {', '.join(names) or 'none'})")
        return file

"""A compressed text or .jsonl file, unpacked once into the cache folder, so that any record can be read without the others."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from nanochat_lit.common.compressed import UNPACK_ERRORS
from nanochat_lit.common.downloads import locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, cache_folder
from nanochat_lit.data.parquet_file import ParquetFile
from nanochat_lit.data.record_files import IndexedFile, RecordFile

ROW_GROUP_SIZE = 1024


class CompressedFile(RecordFile):
    """The records of another kind of file, which is compressed. The unpacked copy is a parquet file of their bytes."""

    def __init__(self, plain: IndexedFile) -> None:
        super().__init__(plain.path, plain.column)
        self.plain = plain
        self._copy: ParquetFile | None = None

    @property
    def num_rows(self) -> int:
        """Its records."""
        return self._unpacked().num_rows

    def blocks(self) -> list[tuple[int, int]]:
        """The row groups of the unpacked copy."""
        return self._unpacked().blocks()

    def read(self, rows: Sequence[int]) -> Iterator[object]:
        """Items of rows of one block."""
        unpacked = self._unpacked()
        self.check_unchanged()
        found = unpacked.values(rows, ["start", "data"])
        for start, data in zip(found["start"], found["data"], strict=True):
            yield self.plain.parse(data, start)

    def _unpacked(self) -> ParquetFile:
        if self._copy is None:
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
            self._copy = ParquetFile(copy, "data")
        return self._copy

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
                "if it is damaged, get it again; XDG_CACHE_HOME puts the copy elsewhere"
            ) from None

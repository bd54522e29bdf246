"""A .jsonl.gz or .jsonl.zst file, unpacked once into the cache folder, so that any row can be read without the others."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from nanochat_lit.common.downloads import cache_folder, locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.data.parquet_file import ParquetFile
from nanochat_lit.data.record_files import RecordFile, parse_json_row

ROW_GROUP_SIZE = 1024
_CODECS = {".gz": "gzip", ".zst": "zstd"}


class CompressedJsonlFile(RecordFile):
    """One JSON object a line, compressed. The unpacked copy is a parquet file of the lines and their numbers."""

    def __init__(self, path: Path, column: str) -> None:
        super().__init__(path, column)
        self._lines: ParquetFile | None = None

    @property
    def num_rows(self) -> int:
        """Lines that are not blank."""
        return self._unpacked().num_rows

    def blocks(self) -> list[tuple[int, int]]:
        """The row groups of the unpacked copy."""
        return self._unpacked().blocks()

    def read(self, rows: Sequence[int]) -> Iterator[object]:
        """Items of rows of one block."""
        unpacked = self._unpacked()
        self.check_unchanged()
        lines = unpacked.values(rows, ["line", "json"])
        for number, data in zip(lines["line"].to_pylist(), lines["json"].to_pylist(), strict=True):
            yield parse_json_row(data, self, lambda number=number: f"{self.path}:{number}")

    def _unpacked(self) -> ParquetFile:
        if self._lines is None:
            self.check_unchanged()
            about = self.path.stat()
            place = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
            copy = cache_folder() / "unpacked" / f"{place}-{about.st_size}-{about.st_mtime_ns}.parquet"
            if not copy.is_file():
                with locked(copy.with_name(f"{place}.lock")):
                    if not copy.is_file():
                        for stale in copy.parent.glob(f"{place}-*.parquet"):
                            stale.unlink()
                        self._unpack(copy)
            self._lines = ParquetFile(copy, "json")
        return self._lines

    def _unpack(self, copy: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([("line", pyarrow.int64()), ("json", pyarrow.binary())])
        try:
            with atomic_write(copy) as out, pyarrow.parquet.ParquetWriter(out, schema, compression="zstd") as writer:
                lines = ((number, line) for number, line in enumerate(self._read_lines(), 1) if line.strip())
                while group := list(islice(lines, ROW_GROUP_SIZE)):
                    writer.write_table(pyarrow.table(list(zip(*group, strict=True)), schema=schema))
        except (OSError, EOFError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"'{self.path}' cannot be unpacked into '{copy.parent}' ({reason}); "
                "if it is damaged, get it again; XDG_CACHE_HOME puts the copy elsewhere"
            ) from None

    def _read_lines(self) -> Iterator[bytes]:
        import pyarrow

        with pyarrow.input_stream(str(self.path), compression=_CODECS[self.path.suffix]) as stream:
            rest = b""
            while chunk := stream.read(2**20):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
            if rest:
                yield rest

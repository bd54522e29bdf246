"""Supported file types, by case-insensitive suffix."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath

from nanochat_lit.common.compressed import CODECS, UNPACK_ERRORS
from nanochat_lit.common.downloads import locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, cache_folder
from nanochat_lit.data.parquet_file import ParquetFile
from nanochat_lit.data.record_files import IndexedFile, JsonlFile, RecordFile, TextFile

KINDS: dict[str, type[IndexedFile] | type[ParquetFile]] = {
    ".txt": TextFile, ".text": TextFile, ".md": TextFile, ".markdown": TextFile,
    ".jsonl": JsonlFile, ".ndjson": JsonlFile, ".jsonlines": JsonlFile,
    ".parquet": ParquetFile,
}  # fmt: skip
KINDS_IN_WORDS = ".txt, .md, .jsonl (also .gz, .zst, .bz2, .xz) or .parquet"
_FAMILIES = {TextFile: ".txt", JsonlFile: ".jsonl", ParquetFile: ".parquet"}


ROW_GROUP_SIZE = 1024


class CompressedFile(RecordFile):
    """Records of a compressed file; the unpacked copy is a parquet file of their bytes."""

    def __init__(self, plain: IndexedFile) -> None:
        super().__init__(plain.path, plain.column)
        self.plain = plain
        self._copy: ParquetFile | None = None

    @property
    def num_rows(self) -> int:
        """Number of records."""
        return self._unpacked().num_rows

    def blocks(self) -> list[tuple[int, int]]:
        """Return the row groups of the unpacked copy."""
        return self._unpacked().blocks()

    def read(self, rows: Sequence[int]) -> Iterator[object]:
        """Yield items of records of one block."""
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
                "if it is damaged, download it again; set XDG_CACHE_HOME to use another folder"
            ) from None


def family_of(path: PurePath) -> str | None:
    """Return the format of a file (.txt, .jsonl or .parquet); None if it is not supported."""
    kind = _kind(path)
    return None if kind is None else _FAMILIES[kind]


def record_file(path: Path, column: str) -> RecordFile:
    """Return a file of documents or conversations, without opening it."""
    kind = _kind(path)
    assert kind is not None, "the file type is supported"
    if kind is ParquetFile or path.suffix.lower() not in CODECS:
        return kind(path, column)
    assert issubclass(kind, IndexedFile)
    return CompressedFile(kind(path, column))


def _kind(path: PurePath) -> type[IndexedFile] | type[ParquetFile] | None:
    if path.suffix.lower() not in CODECS:
        return KINDS.get(path.suffix.lower())
    kind = KINDS.get(PurePath(path.stem).suffix.lower())
    return None if kind is ParquetFile else kind

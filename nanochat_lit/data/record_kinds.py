"""Which kinds of files hold documents, by the end of their names."""

from pathlib import Path

from nanochat_lit.data.compressed_files import CompressedJsonlFile
from nanochat_lit.data.parquet_file import ParquetFile
from nanochat_lit.data.record_files import JsonlFile, RecordFile, TextFile

KINDS: dict[str, type[RecordFile]] = {
    ".txt": TextFile,
    ".jsonl": JsonlFile,
    ".jsonl.gz": CompressedJsonlFile,
    ".jsonl.zst": CompressedJsonlFile,
    ".parquet": ParquetFile,
}


def kind_of(path: Path) -> str | None:
    """The end of a file's name that tells its kind; None if it is of no known kind."""
    kind = "".join(path.suffixes[-2:]) if path.suffix in (".gz", ".zst") else path.suffix
    return kind if kind in KINDS else None


def record_file(path: Path, column: str) -> RecordFile:
    """A file of documents or conversations, which is not opened yet."""
    kind = kind_of(path)
    assert kind is not None, "only files of a known kind are asked for"
    return KINDS[kind](path, column)

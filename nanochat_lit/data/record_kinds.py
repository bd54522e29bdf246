"""Which kinds of files hold documents, by the ending of their names, in any case."""

from pathlib import Path, PurePath

from nanochat_lit.common.compressed import CODECS
from nanochat_lit.data.compressed_files import CompressedFile
from nanochat_lit.data.parquet_file import ParquetFile
from nanochat_lit.data.record_files import IndexedFile, JsonlFile, RecordFile, TextFile

KINDS: dict[str, type[IndexedFile] | type[ParquetFile]] = {
    ".txt": TextFile, ".text": TextFile, ".md": TextFile, ".markdown": TextFile,
    ".jsonl": JsonlFile, ".ndjson": JsonlFile, ".jsonlines": JsonlFile,
    ".parquet": ParquetFile,
}  # fmt: skip
KINDS_IN_WORDS = ".txt, .md, .jsonl (also .gz, .zst, .bz2, .xz) or .parquet"
_FAMILIES = {TextFile: ".txt", JsonlFile: ".jsonl", ParquetFile: ".parquet"}


def family_of(path: PurePath) -> str | None:
    """.txt, .jsonl or .parquet, whichever a file is read as; None if it cannot be read."""
    kind = _kind(path)
    return None if kind is None else _FAMILIES[kind]


def record_file(path: Path, column: str) -> RecordFile:
    """A file of documents or conversations, which is not opened yet."""
    kind = _kind(path)
    assert kind is not None, "only files of a known kind are asked for"
    if kind is ParquetFile or path.suffix.lower() not in CODECS:
        return kind(path, column)
    assert issubclass(kind, IndexedFile)
    return CompressedFile(kind(path, column))


def _kind(path: PurePath) -> type[IndexedFile] | type[ParquetFile] | None:
    if path.suffix.lower() not in CODECS:
        return KINDS.get(path.suffix.lower())
    kind = KINDS.get(PurePath(path.stem).suffix.lower())
    return None if kind is ParquetFile else kind

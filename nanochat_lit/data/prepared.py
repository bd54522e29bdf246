"""Prepared shards: text tokenized ahead of training, memory-mapped.

    shard_00000.tokens, ...   token ids, one file per text file
    tokenizer/                the tokenizer of the shards
    prepared.json             written last: the shards in order, validation shards last

Shards are written one by one, so an interrupted preparation resumes at the first missing shard. A shard consists of:

    header    128 bytes: mark, version, bytes per token, counts, CRC32, sha256 of tokenizer and text file (see `Header`)
    tokens    consecutive documents, each beginning with BOS, little endian, padded to a multiple of 8 bytes
    offsets   int64, number of records + 1: start of each record; a record without text has no tokens
    blocks    int64, number of blocks + 1: first record of each block of the text file

Records and blocks are those of the text file, so that both yield the same documents in the same order. If the sizes in
the header do not add up to the file size, the file is incomplete.
"""

import errno
import itertools
import shutil
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nanochat_lit.common.downloads import file_sha256, locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, read_json, write_json
from nanochat_lit.data.records import RecordFile, readable
from nanochat_lit.data.splits import FileSplit

if TYPE_CHECKING:
    from nanochat_lit.data.shards import FileSource
    from nanochat_lit.tokenizer import Tokenizer

LIST_FILE = "prepared.json"
TOKENIZER_FOLDER = "tokenizer"
FORMAT = "nanochat-lit prepared text"
SUFFIX = ".tokens"
FORMAT_VERSION = 1
HEADER_BYTES = 128
_MARK = b"NLTOKENS"
_LAYOUT = "<8s2I3Q2I32s32s"
_CHUNK_BYTES = 2**24
ENCODE_BATCH_SIZE = 128
"""Maximum number of texts per tokenizer call."""


class Header(NamedTuple):
    """Fields at the beginning of a shard, in this order."""

    mark: bytes  # file signature
    version: int  # of the format
    itemsize: int  # bytes per token: 2 or 4
    num_rows: int  # records of the text file, including those without text
    num_tokens: int  # of all documents, including BOS
    num_blocks: int  # of the text file
    crc32: int  # of everything after the header
    reserved: int  # 0
    tokenizer: bytes  # sha256 of the tokenizer's model file
    source: bytes  # sha256 of the text file

    @property
    def token_bytes(self) -> int:
        """Bytes of all tokens, padded to a multiple of 8."""
        return -(-self.num_tokens * self.itemsize // 8) * 8

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return HEADER_BYTES + self.token_bytes + 8 * (self.num_rows + 1 + self.num_blocks + 1)


class PreparedFile(RecordFile):
    """Tokenized documents by record."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "tokens")

    def __getstate__(self) -> dict[str, Any]:  # a worker maps the file itself; otherwise its contents would be sent
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    @cached_property
    def header(self) -> Header:
        """Header of the file; UserError if it is not a prepared shard, has another version, or is truncated."""
        self.check_unchanged()
        return read_header(self.path)

    def blocks(self) -> list[tuple[int, int]]:
        """Return the blocks of the text file as ranges of records."""
        starts = self._arrays[2].tolist()
        return list(itertools.pairwise(starts))

    def read(self, rows: Sequence[int]) -> Iterator[np.ndarray | None]:
        """Yield tokenized documents as views of the file; None for a record without text."""
        self.check_unchanged()  # accessing pages of a truncated file would kill the process
        tokens, offsets, _ = self._arrays
        for row in rows:
            start, stop = int(offsets[row]), int(offsets[row + 1])
            yield tokens[start:stop] if stop > start else None

    def check(self, thorough: bool) -> int:
        """Raise UserError if the file is incomplete; `thorough` also verifies the checksum."""
        header = self.header
        if not thorough:
            return header.num_rows
        crc32 = 0
        with self.path.open("rb") as file:
            file.seek(HEADER_BYTES)
            while chunk := file.read(_CHUNK_BYTES):
                crc32 = zlib.crc32(chunk, crc32)
        if crc32 != header.crc32:
            raise UserError(f"'{self.path}' is damaged (its checksum differs); delete it and run `data prepare` again")
        return min(header.num_rows, header.num_tokens)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        header = self.header
        whole = np.memmap(self.path, np.uint8, mode="r").view(np.ndarray)  # plain arrays are faster to slice
        end = HEADER_BYTES + header.num_tokens * header.itemsize
        tokens = whole[HEADER_BYTES:end].view(f"<u{header.itemsize}")
        numbers = whole[HEADER_BYTES + header.token_bytes :].view("<i8")
        return tokens, numbers[: header.num_rows + 1], numbers[header.num_rows + 1 :]


def read_header(path: Path) -> Header:
    """Return the header of a shard; raises UserError as `PreparedFile.header`."""
    with readable(path), path.open("rb") as file:
        data = file.read(HEADER_BYTES)
        size = path.stat().st_size
    if len(data) < HEADER_BYTES or not data.startswith(_MARK):
        raise UserError(f"'{path}' is not a prepared shard, or is damaged; delete it and run `data prepare` again")
    header = Header(*struct.unpack_from(_LAYOUT, data))
    if header.version != FORMAT_VERSION:
        raise UserError(
            f"'{path}' has format version {header.version}, but this version reads {FORMAT_VERSION}; "
            "delete it and run `data prepare` again"
        )
    if header.itemsize not in (2, 4) or size != header.file_bytes:
        raise UserError(
            f"'{path}' is incomplete ({size:,} bytes, expected {header.file_bytes:,}); "
            "delete it and run `data prepare` again"
        )
    return header


def write_shard(
    path: Path,
    documents: Iterable[np.ndarray | None],
    blocks: Sequence[tuple[int, int]],
    dtype: np.dtype,
    fingerprints: tuple[str, str],
) -> Header:
    """Write a shard atomically: token ids of every record in order, None for a record without text.

    `blocks` are ranges of records, without gaps; `fingerprints` the sha256 of the tokenizer and of the text file.
    """
    offsets = array("q", [0])
    starts = array("q", [*(start for start, _ in blocks), blocks[-1][1] if blocks else 0])
    crc32 = 0
    with atomic_write(path) as file:
        file.write(bytes(HEADER_BYTES))

        def write(data: bytes) -> None:
            nonlocal crc32
            crc32 = zlib.crc32(data, crc32)
            file.write(data)

        for document in documents:
            if document is not None:
                write(document.astype(dtype.newbyteorder("<"), copy=False).tobytes())
            offsets.append(offsets[-1] + (0 if document is None else len(document)))
        write(bytes(-offsets[-1] * dtype.itemsize % 8))
        for numbers in (offsets, starts):
            write(np.asarray(numbers).astype("<i8").tobytes())
        sizes = (len(offsets) - 1, offsets[-1], len(blocks))
        header = Header(
            _MARK, FORMAT_VERSION, dtype.itemsize, *sizes, crc32, 0, *map(bytes.fromhex, fingerprints)
        )  # fmt: skip
        file.seek(0)
        file.write(struct.pack(_LAYOUT, *header))
    return header


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 that can represent every id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def encoded_documents(tokenizer: "Tokenizer", texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
    """Return the token ids of each text, beginning with BOS, using `num_threads` native threads."""
    dtype = token_dtype(tokenizer.vocab_size)
    encoded = tokenizer.encode_batch(texts, num_threads)
    return [np.array([tokenizer.bos_id, *token_ids], dtype) for token_ids in encoded]


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items (itertools.batched needs Python 3.12)."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def is_prepared(path: object) -> bool:
    """Return whether a path is a folder of prepared shards, finished or not."""
    if not isinstance(path, (str, Path)):
        return False
    folder = Path(path)
    return folder.is_dir() and ((folder / LIST_FILE).exists() or any(folder.glob(f"*{SUFFIX}")))


def prepared_split(folder: Path) -> FileSplit:
    """Return the training and validation shards; UserError if the preparation was not finished, or a shard is missing."""
    if not (folder / LIST_FILE).exists():
        raise UserError(f"the preparation of '{folder}' was not finished; run the same `data prepare` again")
    content = read_json(folder / LIST_FILE)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"'{folder / LIST_FILE}' is not a list of prepared shards; run `data prepare` again")
    paths = [folder / name for name in content["shards"]]
    for path in paths:
        if not path.is_file():
            raise UserError(f"'{path}' is missing; run the same `data prepare` again")
    num_train = content.get("num_train", max(1, len(paths) - 1))  # missing in folders of earlier versions
    return FileSplit(train=paths[:num_train], val=paths[num_train:])


def check_tokenizer(folder: Path, tokenizer: "Tokenizer") -> None:
    """Raise UserError unless the shards of a folder were prepared with this tokenizer."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        found = read_header(path).tokenizer.hex()
        if found != tokenizer.fingerprint:
            raise UserError(
                f"'{path}' was prepared with another tokenizer ({found[:12]}...) than the one in use "
                f"({tokenizer.fingerprint[:12]}...); use '{folder / TOKENIZER_FOLDER}', "
                "or prepare the text with this one into another folder"
            )


def prepare(
    source: "FileSource",
    tokenizer: "Tokenizer",
    folder: Path,
    num_threads: int = 1,
    report: Callable[[Path, Header, bool], Any] = lambda _path, _header, _is_new: None,
) -> list[Header]:
    """Write the missing shards, then the list of all shards; finished shards survive an error.

    `report` is called after each shard with its path, its header and whether it is new.
    """
    try:
        with locked(folder / ".lock"):
            paths = _shard_paths(source, folder)
            for rest in folder.glob(f".*{SUFFIX}.*.tmp"):  # left by a killed preparation; this process has the lock
                rest.unlink()
            for path in paths:
                if path.is_file() and _whole_header(path) is None:
                    path.unlink()  # damaged: written again
            check_tokenizer(folder, tokenizer)
            (folder / LIST_FILE).unlink(missing_ok=True)
            tokenizer.save(folder / TOKENIZER_FOLDER)
            headers = []
            for index, path in enumerate(paths):
                digest = file_sha256(source.files[index].path)
                header = _whole_header(path)
                is_new = header is None or header.source.hex() != digest
                if header is None or is_new:
                    header = _write_from(source, index, path, tokenizer, num_threads, digest)
                headers.append(header)
                report(path, header, is_new)
            content = {
                "format": FORMAT,
                "tokenizer": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "documents": sum(header.num_rows for header in headers),
                "tokens": sum(header.num_tokens for header in headers),
                "shards": [path.name for path in paths],
                "num_train": len(source.split.train),
            }
            write_json(folder / LIST_FILE, content)
            return headers
    except OSError as error:
        reason = error.strerror or str(error)
        hint = ""
        if error.errno == errno.ENOSPC:
            hint = f"; {shutil.disk_usage(folder).free:,} bytes are free there: free disk space and run it again, finished shards are kept"
        raise UserError(f"cannot write into '{folder}' ({reason}){hint}") from None


def _shard_paths(source: "FileSource", folder: Path) -> list[Path]:
    names = [file.path.name.split(".")[0] for file in source.files]
    if len(set(names)) < len(names):  # for example a.b.txt and a.c.txt, or equal names in two folders
        names = [source.file_name(file.path).replace("/", "__") for file in source.files]
    return [folder / f"{name}{SUFFIX}" for name in names]


def _whole_header(path: Path) -> Header | None:
    """Return the header of an existing, complete shard, else None."""
    try:
        return read_header(path) if path.is_file() else None
    except UserError:
        return None


def _write_from(
    source: "FileSource", index: int, path: Path, tokenizer: "Tokenizer", num_threads: int, digest: str
) -> Header:
    blocks = source.files[index].blocks()

    def documents() -> Iterator[np.ndarray | None]:
        records = (item for start, stop in blocks for item in source.read(index, range(start, stop)))
        for batch in batched(records, ENCODE_BATCH_SIZE):
            encoded = iter(encoded_documents(tokenizer, [text for text in batch if text is not None], num_threads))
            for text in batch:
                yield None if text is None else next(encoded)

    dtype = token_dtype(tokenizer.vocab_size)
    return write_shard(path, documents(), blocks, dtype, (tokenizer.fingerprint, digest))

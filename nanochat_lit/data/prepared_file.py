"""A prepared shard: the token ids of a file's documents, memory-mapped.

    header    128 bytes: mark, version, bytes per token, counts, CRC32, sha256 of tokenizer and text file (see `Header`)
    tokens    consecutive documents, each beginning with BOS, little endian, padded to a multiple of 8 bytes
    offsets   int64, number of records + 1: start of each record; a record without text has no tokens
    blocks    int64, number of blocks + 1: first record of each block of the text file

Records and blocks are those of the text file, so that both yield the same documents in the same order. If the sizes in
the header do not add up to the file size, the file is incomplete.
"""

import itertools
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.data.record_files import RecordFile

SUFFIX = ".tokens"
FORMAT_VERSION = 1
HEADER_BYTES = 128
_MARK = b"NLTOKENS"
_LAYOUT = "<8s2I3Q2I32s32s"
_CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class Header:
    """Fields at the beginning of a shard, in this order."""

    mark: bytes
    """File signature."""
    version: int
    """Version of the format."""
    itemsize: int
    """Bytes per token: 2 or 4."""
    num_rows: int
    """Number of records of the text file, including those without text."""
    num_tokens: int
    """Number of tokens of all documents, including BOS."""
    num_blocks: int
    """Number of blocks of the text file."""
    crc32: int
    """CRC32 of everything after the header."""
    reserved: int
    """Reserved, 0."""
    tokenizer: bytes
    """sha256 of the tokenizer's model file."""
    source: bytes
    """sha256 of the text file."""

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
        self._header: Header | None = None
        self._arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # a worker maps the file itself; otherwise its contents would be sent

    @property
    def header(self) -> Header:
        """Header of the file.

        Raises:
            UserError: If it is not a prepared shard, has another version, or is truncated.
        """
        if self._header is None:
            self.check_unchanged()
            self._header = read_header(self.path)
        return self._header

    @property
    def num_rows(self) -> int:
        """Number of records of the text file."""
        return self.header.num_rows

    def blocks(self) -> list[tuple[int, int]]:
        """Return the blocks of the text file as ranges of records."""
        starts = self._mapped()[2].tolist()
        return list(itertools.pairwise(starts))

    def read(self, rows: Sequence[int]) -> Iterator[np.ndarray | None]:
        """Yield tokenized documents as views of the file; None for a record without text."""
        self.check_unchanged()  # accessing pages of a truncated file would kill the process
        tokens, offsets, _ = self._mapped()
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

    def _mapped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._arrays is None:
            header = self.header
            whole = np.memmap(self.path, np.uint8, mode="r").view(np.ndarray)  # plain arrays are faster to slice
            end = HEADER_BYTES + header.num_tokens * header.itemsize
            tokens = whole[HEADER_BYTES:end].view(f"<u{header.itemsize}")
            numbers = whole[HEADER_BYTES + header.token_bytes :].view("<i8")
            self._arrays = tokens, numbers[: header.num_rows + 1], numbers[header.num_rows + 1 :]
        return self._arrays


def read_header(path: Path) -> Header:
    """Return the header of a shard; raises UserError as `PreparedFile.header`."""
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror})") from None
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
    """Write a shard atomically.

    Args:
        path: Path of the shard.
        documents: Token ids of every record in order; None for a record without text.
        blocks: Ranges of records, in order and without gaps.
        dtype: uint16 or uint32.
        fingerprints: sha256 of the tokenizer and of the text file, in hexadecimal.
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
        file.write(struct.pack(_LAYOUT, *astuple(header)))
    return header

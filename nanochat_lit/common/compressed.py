"""Text files that may be compressed (by file suffix) and may begin with a byte order mark."""

import codecs
import io
import lzma
import zlib
from pathlib import Path
from typing import IO

from nanochat_lit.common.errors import UserError

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Codec by suffix of compressed files."""

_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip


def is_compressed(path: Path) -> bool:
    """Return whether the suffix is that of a compressed file, ignoring case."""
    return path.suffix.lower() in CODECS


def open_unpacked(path: Path) -> tuple[IO[bytes], int]:
    """Open a text file after its UTF-8 byte order mark, if it has one; decompresses on the fly.

    Returns:
        The file, and the number of bytes of the mark.

    Raises:
        UserError: If the text is UTF-16 or UTF-32.
        OSError: If it cannot be read; a damaged file raises one of `UNPACK_ERRORS` on reading.
    """
    codec = CODECS.get(path.suffix.lower())
    file: IO[bytes]
    if codec is None:
        file = path.open("rb")
    elif codec == "xz":
        file = lzma.open(path)  # noqa: SIM115 - the caller closes it
    else:
        import pyarrow

        file = io.BufferedReader(pyarrow.input_stream(str(path), compression=codec))
    try:
        start = file.peek(4)[:4]
        for mark, name in _MARKS.items():
            if start.startswith(mark):
                raise UserError(f"'{path}' is {name} text; convert it to UTF-8")
        return file, len(file.read(len(codecs.BOM_UTF8))) if start.startswith(codecs.BOM_UTF8) else 0
    except BaseException:
        file.close()
        raise


UNPACK_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Errors raised on reading damaged compressed files."""

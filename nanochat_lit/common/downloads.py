"""Files from the internet: whole or absent, checked, once per machine however many processes ask."""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.file_lock import lock_file
from nanochat_lit.common.paths import atomic_write

NUM_ATTEMPTS = 5
FIRST_PAUSE_S = 1.0
"""Between the first two attempts; every further pause is twice as long."""
TIMEOUT_S = 30.0
"""Longest silence of a server."""
CHUNK_BYTES = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: nanochat_lit in $XDG_CACHE_HOME, or in ~/.cache; not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat_lit"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time into the block, on this machine; the lock of a process that dies is free again.

    Args:
        path: The lock file, kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        lock_file(file)
        yield


def download(url: str, path: Path, sha256: str | None = None, pause: Callable[[float], None] = time.sleep) -> None:
    """Fetch a file, again after an error, and put it in place when it is whole.

    Args:
        url: http or https.
        path: Where; an existing file is replaced.
        sha256: Checksum in hexadecimal; None checks only the length that the server has promised.
        pause: Waits for a number of seconds.

    Raises:
        UserError: If the last attempt fails too, the server refuses, or the file is another one.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"the address {url} is neither http nor https")
    for attempt in range(NUM_ATTEMPTS):
        if attempt:
            pause(FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            _fetch(url, path, sha256)
            return
        except (OSError, http.client.HTTPException, _CutShortError) as error:
            is_final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if is_final or attempt == NUM_ATTEMPTS - 1:
                times = "once" if attempt == 0 else f"{attempt + 1} times"
                raise UserError(f"{url} cannot be downloaded (tried {times}; {error})") from None


class _CutShortError(Exception):
    """The connection has ended before the file."""


def _fetch(url: str, path: Path, sha256: str | None) -> None:
    hasher, num_bytes = hashlib.sha256(), 0
    with atomic_write(path) as file:  # an error in the block leaves no file
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 (the scheme was checked)
            promised = response.headers.get("Content-Length")
            while chunk := response.read(CHUNK_BYTES):
                hasher.update(chunk)
                num_bytes += len(chunk)
                file.write(chunk)
        if promised is not None and num_bytes != int(promised):
            raise _CutShortError(f"the connection has ended after {num_bytes:,} of {int(promised):,} bytes")
        if sha256 is not None and hasher.hexdigest() != sha256:
            raise UserError(f"{url} gives a file with the sha256 {hasher.hexdigest()}, not {sha256}; it is not kept")

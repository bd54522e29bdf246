"""Files from the internet: whole or absent, checked, taken up where the connection broke, once per machine."""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.file_lock import lock_file
from nanochat_lit.common.http_request import AgainError, Request, extent, open_request, retry_after_s, version
from nanochat_lit.common.paths import read_json, write_json

NUM_ATTEMPTS = 5
"""In a row without gaining ground; an attempt that has brought PROGRESS_BYTES does not count."""
PROGRESS_BYTES = 8 << 20
FIRST_PAUSE_S = 1.0
"""Between the first two attempts; every further pause is twice as long."""
LONGEST_PAUSE_S = 300.0
"""However long a server asks us to wait."""
CHUNK_BYTES = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: nanochat_lit in $XDG_CACHE_HOME, or in ~/.cache; not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat_lit"


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Let one process at a time into the block, on this machine; the lock of a process that dies is free again.

    Args:
        path: The lock file, kept.
        wait: For the process that has the lock; otherwise the block runs at once.

    Yields:
        Whether this process has the lock; always when it waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield lock_file(file, wait=wait)


def download(
    url: str | Request,
    path: Path,
    sha256: str | None = None,
    pause: Callable[[float], object] = time.sleep,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Fetch a file, on from where it broke off after an error, and put it in place when it is whole.

    Args:
        url: What to fetch.
        path: Where; an existing file is replaced.
        sha256: Short for that of a `Request`.
        pause: Waits for a number of seconds.
        progress: Told the bytes as they arrive; negative for bytes that have to be fetched again.

    Returns:
        The sha256 of the file.

    Raises:
        UserError: If the last attempt fails too, the server refuses, the file is another one, or the disk is full.
    """
    request = Request(url=url, sha256=sha256) if isinstance(url, str) else url
    if not request.url.startswith(("http://", "https://")):
        raise UserError(f"the address {request.url} is neither http nor https")
    path.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(request, path, progress or (lambda _: None))
    try:
        return _attempts(transfer, pause)
    except BaseException:
        if not request.keep_partial:
            transfer.discard()
        raise


def _attempts(transfer: "_Transfer", pause: Callable[[float], object]) -> str:
    url = transfer.request.url
    attempt = num_tries = 0
    while True:
        before = transfer.num_received
        num_tries += 1
        try:
            return transfer.run()
        except (OSError, http.client.HTTPException, AgainError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise transfer.disk_full() from None
            attempt = 1 if transfer.num_received - before >= PROGRESS_BYTES else attempt + 1
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)
            if refused or attempt == NUM_ATTEMPTS:
                raise _give_up(url, error, num_tries) from None
            wait_s = FIRST_PAUSE_S * 2 ** (attempt - 1)
            if isinstance(error, urllib.error.HTTPError):
                wait_s = max(wait_s, retry_after_s(error.headers.get("Retry-After")))
                error.close()
            pause(min(wait_s, LONGEST_PAUSE_S))


def _give_up(url: str, error: Exception, num_tries: int) -> UserError:
    times = "once" if num_tries == 1 else f"{num_tries} times"
    hint = ""
    if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
        hint = "; if it needs permission, set HF_TOKEN to a token that has it"
    return UserError(f"{url} cannot be downloaded (tried {times}; {error}){hint}")


class DiskFullError(UserError):
    """There is no room for a file."""


class _Transfer:
    """One file on its way: what has arrived lies in .NAME.partial, what it belongs to in .NAME.partial.json."""

    def __init__(self, request: Request, path: Path, progress: Callable[[int], None]) -> None:
        self.request = request
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.about = path.with_name(f".{path.name}.partial.json")
        self.progress = progress
        self.num_received = 0
        self._counted = 0

    def run(self) -> str:
        """One attempt; the checksum of the file, which is in place then."""
        sha256, size = self._fetch()
        found_size = self.partial.stat().st_size
        if size is not None and found_size < size:
            raise AgainError(f"the connection has ended after {found_size:,} of {size:,} bytes")
        if size is not None and found_size != size:
            self._fetch_again(f"{found_size:,} bytes have come instead of {size:,}")
        found = file_sha256(self.partial)
        if sha256 is not None and found != sha256.lower():
            self._fetch_again(f"it gives a file with the sha256 {found}, not {sha256}, which is not kept")
        if self.request.check is not None:
            try:
                self.request.check(self.partial)
            except UserError as error:
                self._fetch_again(str(error))
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.path)
        self.about.unlink(missing_ok=True)
        return found

    def discard(self) -> None:
        """Forget what has arrived."""
        self.partial.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)
        self.progress(-self._counted)
        self._counted = 0

    def disk_full(self) -> DiskFullError:
        """The error for a disk that is full; what has arrived is given up, to make room for others."""
        self.discard()
        free = shutil.disk_usage(self.path.parent).free
        return DiskFullError(
            f"no space left for '{self.path}' ({free:,} bytes free); make room or give another folder, "
            "then start again: what is complete stays"
        )

    def _fetch_again(self, reason: str) -> None:
        self.discard()
        raise AgainError(reason)

    def _fetch(self) -> tuple[str | None, int | None]:
        """Append what is missing; the checksum and length that the file has to have."""
        have = self.partial.stat().st_size if self.partial.is_file() and self.about.is_file() else 0
        self._count_up_to(have)
        with open_request(self.request, have) as (response, linked):
            start, size = extent(response)
            about = {"version": version(response, linked), "size": size}
            if start and (start != have or about != _read_about(self.about)):
                self._fetch_again("the file on the server has changed meanwhile")
            if not start:
                self._count_up_to(0)
                write_json(self.about, about)
            with self.partial.open("ab" if start else "wb") as file:
                self._copy(response, file)
        named = linked.get("X-Linked-ETag") or response.headers.get("ETag") or ""
        named = named.strip('W/"')
        sha256 = self.request.sha256 or (named if re.fullmatch("[0-9a-f]{64}", named) else None)
        return sha256, self.request.size if self.request.size is not None else size

    def _copy(self, response: Any, file: IO[bytes]) -> None:
        try:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                self._received(len(chunk))
        except http.client.IncompleteRead as error:
            file.write(error.partial)
            self._received(len(error.partial))

    def _received(self, num_bytes: int) -> None:
        self.num_received += num_bytes
        self._counted += num_bytes
        self.progress(num_bytes)

    def _count_up_to(self, num_bytes: int) -> None:
        if num_bytes != self._counted:
            self.progress(num_bytes - self._counted)
            self._counted = num_bytes


def fetch_bytes(request: Request, limit: int, pause: Callable[[float], object] = time.sleep) -> tuple[bytes, str]:
    """A small answer, such as a list of files, and the value of its Link header.

    Args:
        request: What to fetch.
        limit: Most bytes that are read.
        pause: Waits for a number of seconds.

    Raises:
        UserError: As `download`, or if the answer is longer.
    """

    class Answer(_Transfer):
        content, link = b"", ""

        def run(self) -> str:
            with open_request(self.request, 0) as (response, _):
                self.content = response.read(limit + 1)
                self.link = response.headers.get("Link") or ""
            return ""

    answer = Answer(request, Path("answer"), lambda _: None)
    _attempts(answer, pause)
    if len(answer.content) > limit:
        raise UserError(f"{request.url} answers with more than {limit:,} bytes, which is no list of files")
    return answer.content, answer.link


def file_sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _read_about(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None

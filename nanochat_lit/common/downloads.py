"""Downloads with the Hugging Face hub client: atomic, verified, resumable, and locked per machine.

The client sends requests, follows redirects (only to http and https, without the token on another server), waits for
busy servers and resumes broken connections. This module adds checksums, resuming in a later process, and pinned
versions.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import lock_file


class DownloadProgress:
    """Progress line on stderr: updated in place in a terminal, otherwise printed every 30 seconds."""

    def __init__(self, is_silent: bool = False) -> None:
        self._lock, self._is_silent = threading.Lock(), is_silent
        self._num_done = self._num_bytes = 0
        self._start_s = self._last_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def add(self, num_done: int, num_bytes: int) -> None:
        """Add completed files and received bytes."""
        with self._lock:
            self._num_done += num_done
            self._num_bytes += num_bytes
            now_s = time.monotonic()
            if not self._is_silent and now_s - self._last_s >= (0.2 if self._is_terminal else 30.0):
                self._last_s = now_s
                self._write("\r" if self._is_terminal else "", "" if self._is_terminal else "\n")

    def end(self) -> None:
        """Print the final line, if anything was received."""
        if self._num_bytes and not self._is_silent:
            self._write("\r" if self._is_terminal else "", "\n")

    def _write(self, before: str, after: str) -> None:
        elapsed_s = max(1e-9, time.monotonic() - self._start_s)
        rate = self._num_bytes / elapsed_s / 1e6
        line = f"{self._num_done} files complete, {self._num_bytes / 1e6:,.1f} MB fetched, {rate:,.1f} MB/s"
        sys.stderr.write(f"{before}{line:<60}".rstrip() + after)
        sys.stderr.flush()


NUM_ATTEMPTS = 5
FIRST_PAUSE_S = 1.0
"""Seconds between the first two attempts; doubles with each further attempt."""


class DiskFullError(UserError):
    """Not enough disk space for a file."""


class _AgainError(Exception):
    """The received file is not the expected one; a retry may succeed."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Allow one process per machine into the block; the system releases the lock of a dead process.

    Yields whether this process has the lock: always with `wait`, which waits for it. The lock file is not deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield lock_file(file, wait=wait)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def with_retries(
    call: Callable[[], Any], what: str, hint: str = "", pause: Callable[[float], object] | None = None
) -> Any:
    """Call a function that contacts a server, with retries and increasing pauses on temporary errors.

    The UserError of the last attempt, or of a server that rejects the request or cannot be reached, names the resource
    as `what`, with `hint` as additional advice.
    """
    attempt = 1
    while True:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - offline, refused, a broken cache: each client has errors of its own
            status = getattr(getattr(error, "response", None), "status_code", None) or 0
            is_passing = isinstance(error, _AgainError) or status >= 500 or status in (408, 429)
            if not is_passing or attempt == NUM_ATTEMPTS:
                tried = "" if attempt == 1 else f", tried {attempt} times"
                token = (
                    "; if it requires permission, set HF_TOKEN to an authorized token" if status in (401, 403) else ""
                )
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"{what} cannot be downloaded ({type(error).__name__}: {reason}{tried}){token}{hint}"
                ) from None
        (pause or time.sleep)(FIRST_PAUSE_S * 2 ** (attempt - 1))
        attempt += 1


def read_url(url: str) -> str:
    """Return the text of a small file; the hub's client raises its own errors."""
    from huggingface_hub.utils import hf_raise_for_status, http_backoff

    response = http_backoff("GET", url, follow_redirects=True)
    hf_raise_for_status(response)
    return response.content.decode("utf-8", "replace")


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    *,
    size: int | None = None,
    token: bool | None = False,
    check: Callable[[Path], None] | None = None,
    pause: Callable[[float], object] | None = None,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Download a file and move it into place when complete; a partial download is kept for a later call.

    The expected `sha256` and `size` are those of the hub or server if None. A `token` of False sends none; None uses
    that of the environment or of `hf auth login`. `check` raises UserError if the received file is invalid. `pause`
    sleeps (None is time.sleep); `progress` gets numbers of received bytes, negative for bytes to download again.

    Returns:
        SHA-256 of the file.

    Raises:
        UserError: If the last attempt fails, the server rejects the request, the checksum differs, or the disk is full.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"the address {url} is neither http nor https")
    path.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(url, path, sha256, size, token, check or (lambda _: None), progress or (lambda _: None))
    return with_retries(transfer.run, url, pause=pause)


@dataclass
class _Transfer:
    """One download; the partial file of a version is .NAME.VERSION.partial."""

    url: str
    path: Path
    sha256: str | None
    size: int | None
    token: bool | None
    check: Callable[[Path], None]
    progress: Callable[[int], None]
    num_counted: int = 0

    def run(self) -> str:
        """Make one attempt; return the checksum of the finished file."""
        from huggingface_hub import get_hf_file_metadata

        about = get_hf_file_metadata(self.url, token=self.token, retry_on_errors=True)
        if self.url.startswith("https://") and about.location.startswith("http://"):
            raise UserError(f"{self.url} redirects to {about.location}, which is not https; not followed")
        version = hashlib.sha256((about.etag or "").encode()).hexdigest()[:12]
        partial = self.path.with_name(f".{self.path.name}.{version}.partial")
        for old in self.path.parent.glob(f".{self.path.name}.*.partial"):
            if old != partial or about.etag is None:
                old.unlink()
        stated = about.etag if about.etag and re.fullmatch("[0-9a-f]{64}", about.etag) else None
        try:
            found = self._fetch(partial, self.size or about.size, self.sha256 or stated)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            partial.unlink(missing_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            raise DiskFullError(
                f"no space left for '{self.path}' ({free:,} bytes free); free disk space or choose another folder, "
                "then repeat the command; completed files are kept"
            ) from None
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path)
        return found

    def _fetch(self, partial: Path, size: int | None, sha256: str | None) -> str:
        """Append the missing part of the file; return its checksum."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        have = partial.stat().st_size if partial.is_file() else 0
        self._count(have - self.num_counted)
        with partial.open("ab") as file:
            http_get(
                self.url,
                file,
                resume_size=have,
                expected_size=None,
                headers={**build_hf_headers(token=self.token), "Accept-Encoding": "identity"},
                tqdm_class=self._counter(),
            )
        try:
            found_size = partial.stat().st_size
            if size is not None and found_size != size:
                raise _AgainError(f"received {found_size:,} bytes instead of {size:,}")
            found = file_sha256(partial)
            if sha256 is not None and found != sha256.lower():
                raise _AgainError(f"the received file has the sha256 {found}, not {sha256}, and was discarded")
            self.check(partial)
        except (_AgainError, UserError) as error:
            partial.unlink()
            self._count(-self.num_counted)
            raise _AgainError(str(error)) from None
        return found

    def _count(self, num_bytes: int) -> None:
        if num_bytes:
            self.num_counted += num_bytes
            self.progress(num_bytes)

    def _counter(self) -> type:
        """Return a class with the interface of a progress bar for the hub's client."""
        count = self._count

        class Counter(contextlib.nullcontext):
            def __init__(self, **_: object) -> None:
                super().__init__(self)

            def update(self, num_bytes: int) -> None:
                count(num_bytes)

        return Counter

"""One request over HTTP: who may see the token, which part of a file is asked for, what the answer says about it."""

import contextlib
import email.utils
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nanochat_lit.common.errors import UserError

TIMEOUT_S = 30.0
"""Longest silence of a server."""


class AgainError(Exception):
    """The file has not come whole, and the next attempt may fare better."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A file to fetch, and what is known about it beforehand."""

    url: str
    """http or https."""
    sha256: str | None = None
    """Checksum in hexadecimal; None takes the one that the server names, if it does, else the length alone is checked."""
    size: int | None = None
    """Length in bytes; None takes the one that the server names."""
    token: str | None = None
    """Bearer token for this server; it is not sent on when the server sends us elsewhere."""
    check: Callable[[Path], None] | None = None
    """Raises UserError if the file that has arrived is not whole."""
    keep_partial: bool = False
    """Leave what has arrived (.NAME.partial) after a failure, so that the next call continues."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without telling other servers our token; keeps what the first server said about the file."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request for the new address."""
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise UserError(f"{req.full_url} leads to {newurl}, which is not https; this is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and old.netloc != new.netloc:
            request.remove_header("Authorization")
        if headers.get("X-Linked-ETag"):
            self.linked["X-Linked-ETag"] = headers["X-Linked-ETag"]
        return request


@contextlib.contextmanager
def open_request(request: Request, start: int) -> Iterator[tuple[Any, dict[str, str]]]:
    """The answer to a request for a file from byte `start` on, and what the first server has said about the file."""
    headers = {"User-Agent": "nanochat-lit", "Accept-Encoding": "identity"}
    if request.token:
        headers["Authorization"] = f"Bearer {request.token}"
    if start:
        headers["Range"] = f"bytes={start}-"
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    asked = urllib.request.Request(request.url, headers=headers)  # noqa: S310 (the scheme was checked)
    try:
        response = opener.open(asked, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        # The file ends before the place where we wanted to go on: ask for all of it.
        with open_request(request, 0) as opened:
            yield opened
        return
    with response:
        yield response, redirects.linked


def extent(response: Any) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the whole file is."""
    length = response.headers.get("Content-Length")
    if response.status != 206:
        return 0, None if length is None else int(length)
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range") or "")
    if found is None:
        raise AgainError("the server does not say which part of the file it sends")
    return int(found[1]), int(found[2])


def version(response: Any, linked: dict[str, str]) -> str | None:
    """What tells this version of the file from others; None if the server does not say."""
    return linked.get("X-Linked-ETag") or response.headers.get("ETag") or response.headers.get("Last-Modified")


def retry_after_s(value: str | None) -> float:
    """Seconds to wait by a Retry-After header: a number, or a date."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0

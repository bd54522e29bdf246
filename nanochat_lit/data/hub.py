"""The Hugging Face hub: addresses, the files of a data set with their checksums, and what the environment says about it.

HF_ENDPOINT is another server that speaks as the hub does, HF_TOKEN is sent to it, HF_HUB_OFFLINE forbids to ask it. A
mirror, which is given by hand, is a plain folder on a web server: no token, and no rules but HTTP's.
"""

import fnmatch
import json
import os
import re
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from nanochat_lit.common.downloads import fetch_bytes
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.http_request import Request

ENDPOINT = "https://huggingface.co"
CHECKSUMS = "SHA256SUMS"
"""What a mirror may have beside its files, as `sha256sum * > SHA256SUMS` writes it: their names and checksums."""
_LIST_BYTES = 64 << 20
_MAX_PAGES = 1000


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a data set."""

    path: str
    """Within the data set."""
    size: int | None = None
    """Bytes, if known."""
    sha256: str | None = None
    """Checksum in hexadecimal, if known."""

    @property
    def name(self) -> str:
        """Name of the local file: folders become part of it."""
        return self.path.replace("/", "__")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where files of a data set come from."""

    repo: str
    """Name on the hub, OWNER/NAME."""
    revision: str = "main"
    """Branch, tag or commit."""
    mirror: str | None = None
    """Address of a folder with the same files, to read from instead of the hub."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise UserError(f"repo is {self.repo!r}; give OWNER/NAME of a data set on the Hugging Face hub")
        if self.mirror is not None and not self.mirror.startswith(("http://", "https://")):
            raise UserError(f"mirror is {self.mirror!r}; give an address that begins with http:// or https://")

    @property
    def name(self) -> str:
        """For messages."""
        return self.mirror or f"{self.repo} ({endpoint()})"

    def request(self, file: RemoteFile) -> Request:
        """How to ask for a file."""
        path = urllib.parse.quote(file.path)
        if self.mirror is not None:
            return Request(url=f"{self.mirror.rstrip('/')}/{path}", sha256=file.sha256, size=file.size)
        self._check_online(file.path)
        url = f"{endpoint()}/datasets/{self.repo}/resolve/{urllib.parse.quote(self.revision, safe='')}/{path}"
        return Request(url=url, sha256=file.sha256, size=file.size, token=_token())

    def files(self, pattern: str, pause: Callable[[float], None] = time.sleep) -> list[RemoteFile]:
        """The files whose path matches a pattern, by path.

        Args:
            pattern: As in a shell; * goes across folders.
            pause: Waits for a number of seconds.

        Raises:
            UserError: If the list cannot be had, or nothing matches.
        """
        found = self._mirrored(pause) if self.mirror is not None else self._listed(pattern, pause)
        chosen = sorted((file for file in found if fnmatch.fnmatchcase(file.path, pattern)), key=lambda file: file.path)
        if not chosen:
            some = ", ".join(sorted(file.path for file in found)[:5])
            raise UserError(
                f"{self.name} has no file that matches {pattern!r} (it has, among others: {some or 'none'})"
            )
        return chosen

    def checksums(self, pause: Callable[[float], None] = time.sleep) -> dict[str, str]:
        """The checksums that a mirror states, by path; empty if it does not, and for the hub, which states them as it sends."""
        if self.mirror is None:
            return {}
        try:
            return {file.path: file.sha256 for file in self._mirrored(pause) if file.sha256}
        except UserError as error:
            if "404" in str(error):
                return {}
            raise

    def _mirrored(self, pause: Callable[[float], None]) -> list[RemoteFile]:
        request = self.request(RemoteFile(path=CHECKSUMS))
        try:
            content, _ = fetch_bytes(request, _LIST_BYTES, pause)
        except UserError as error:
            raise UserError(
                f"{error}; a mirror lists its files there, as `sha256sum * > {CHECKSUMS}` writes it"
            ) from None
        files = []
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
            if found is None:
                raise UserError(f"{request.url}, line {number} is not a checksum and a name")
            files.append(RemoteFile(path=_checked_path(found[2]), sha256=found[1].lower()))
        return files

    def _listed(self, pattern: str, pause: Callable[[float], None]) -> list[RemoteFile]:
        self._check_online("the list of files")
        folder = pattern[: re.search(r"[*?\[]|$", pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
        base = f"{endpoint()}/api/datasets/{self.repo}/tree/{urllib.parse.quote(self.revision, safe='')}"
        url = f"{base}/{urllib.parse.quote(folder)}?recursive=true" if folder else f"{base}?recursive=true"
        files: list[RemoteFile] = []
        for _ in range(_MAX_PAGES):
            content, link = fetch_bytes(Request(url=url, token=_token()), _LIST_BYTES, pause)
            files += _entries(content, url)
            following = re.search(r'<([^>]+)>;\s*rel="?next"?', link)
            if following is None:
                return files
            url = following[1]
            if urllib.parse.urlsplit(url).netloc != urllib.parse.urlsplit(base).netloc:
                raise UserError(f"the list of {self.repo} goes on at another server, {url}; this is not followed")
        raise UserError(f"the list of {self.repo} has more than {_MAX_PAGES} pages; give a pattern in a folder")

    def _check_online(self, what: str) -> None:
        if is_offline():
            raise UserError(
                f"{what} of {self.repo} is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub; "
                "unset it, or give a mirror"
            )


def endpoint() -> str:
    """Address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _token() -> str | None:
    return os.environ.get("HF_TOKEN", "").strip() or None


def _entries(content: bytes, url: str) -> list[RemoteFile]:
    try:
        entries = json.loads(content)
        files = []
        for entry in entries:
            if entry["type"] == "file":
                large = entry.get("lfs") or {}
                size = large.get("size", entry.get("size"))
                files.append(RemoteFile(path=_checked_path(entry["path"]), size=int(size), sha256=large.get("oid")))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{url} does not answer with a list of files; is it a Hugging Face hub?") from None
    return files


def _checked_path(path: object) -> str:
    """A path from a list of files, which might lead out of the folder."""
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise UserError(f"a list of files names {path!r}, which is no path within a data set")
    return "/".join(parts)

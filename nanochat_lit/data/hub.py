"""Files of data sets on the Hugging Face hub or a mirror, with URLs and checksums.

HF_ENDPOINT sets another server with the hub's API, HF_TOKEN is sent to it, and HF_HUB_OFFLINE disables requests. A
mirror is a plain folder on a web server, accessed without a token.
"""

import fnmatch
import os
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanochat_lit.common.downloads import download, read_url, with_retries
from nanochat_lit.common.errors import UserError

CHECKSUMS = "SHA256SUMS"
"""Optional file of a mirror with names and checksums, written by `sha256sum * > SHA256SUMS`."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a data set."""

    path: str
    """Path within the data set."""
    size: int | None = None
    """Size in bytes, if known."""
    sha256: str | None = None
    """Checksum in hexadecimal, if known."""

    def __post_init__(self) -> None:
        if not self.path or any(part in ("", ".", "..") or "\\" in part for part in self.path.split("/")):
            raise UserError(f"the file list contains {self.path!r}, which is not a path within a data set")

    @property
    def name(self) -> str:
        """Name of the local file, including the folders."""
        return self.path.replace("/", "__")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set on the hub or a mirror."""

    repo: str
    """Name on the hub, OWNER/NAME."""
    revision: str = "main"
    """Branch, tag or commit."""
    mirror: str | None = None
    """URL of a folder with the same files, used instead of the hub."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise UserError(f"repo is {self.repo!r}; give OWNER/NAME of a data set on the Hugging Face hub")
        if self.mirror is not None and not self.mirror.startswith(("http://", "https://")):
            raise UserError(f"mirror is {self.mirror!r}; use a URL that begins with http:// or https://")

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.mirror or f"{self.repo} ({os.environ.get('HF_ENDPOINT') or 'huggingface.co'})"

    def fetch(
        self,
        file: RemoteFile,
        path: Path,
        check: Callable[[Path], None] | None = None,
        pause: Callable[[float], object] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        """Download a file; see `download`."""
        url = self._mirrored(file.path) if self.mirror else self._on_hub(file.path)
        about = {"sha256": file.sha256, "size": file.size, "token": False if self.mirror else None}
        return download(url, path, **about, check=check, pause=pause, progress=progress)

    def files(self, pattern: str) -> list[RemoteFile]:
        """Return the files whose path matches a pattern, sorted by path.

        Args:
            pattern: Shell pattern; * also matches slashes.

        Raises:
            UserError: If the list is not available, or nothing matches.
        """
        hint = f"; a mirror needs this file list, written by `sha256sum * > {CHECKSUMS}`"
        if self.mirror:
            found = with_retries(self._checksums, self._mirrored(CHECKSUMS), hint)
        else:
            self._check_online("the list of files")
            found = with_retries(lambda: self._listed(pattern), f"the list of files of {self.name}")
        chosen = sorted((file for file in found if fnmatch.fnmatchcase(file.path, pattern)), key=lambda file: file.path)
        if not chosen:
            some = ", ".join(sorted(file.path for file in found)[:5])
            raise UserError(
                f"{self.name} has no file that matches {pattern!r} (it has, among others: {some or 'none'})"
            )
        return chosen

    def checksums(self) -> dict[str, str]:
        """Return the checksums of a mirror by path; empty without a list and for the hub, which sends them per file."""
        from huggingface_hub.errors import HfHubHTTPError

        def ask() -> list[RemoteFile]:
            try:
                return self._checksums()
            except HfHubHTTPError as error:
                if error.response.status_code == 404:
                    return []
                raise

        files = with_retries(ask, self._mirrored(CHECKSUMS)) if self.mirror else []
        return {file.path: file.sha256 for file in files}

    def _mirrored(self, path: str) -> str:
        return f"{(self.mirror or '').rstrip('/')}/{urllib.parse.quote(path)}"

    def _on_hub(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        self._check_online(path)
        return hf_hub_url(self.repo, path, repo_type="dataset", revision=self.revision, endpoint=_endpoint())

    def _checksums(self) -> list[RemoteFile]:
        files = []
        for number, line in enumerate(read_url(self._mirrored(CHECKSUMS)).splitlines(), 1):
            found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
            if found is None:
                raise UserError(f"{self._mirrored(CHECKSUMS)}, line {number} is not a checksum and a name")
            files.append(RemoteFile(path=found[2], sha256=found[1].lower()))
        return files

    def _listed(self, pattern: str) -> list[RemoteFile]:
        from huggingface_hub import HfApi, RepoFile

        folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
        tree = HfApi(endpoint=_endpoint()).list_repo_tree(
            self.repo, folder or None, recursive=True, revision=self.revision, repo_type="dataset"
        )
        files = (entry for entry in tree if isinstance(entry, RepoFile))
        return [
            RemoteFile(path=file.path, size=file.size, sha256=file.lfs.sha256 if file.lfs else None) for file in files
        ]

    def _check_online(self, what: str) -> None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(
                f"{what} of {self.repo} is not on this machine, and HF_HUB_OFFLINE disables requests to the hub; "
                "unset it, or set a mirror"
            )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None

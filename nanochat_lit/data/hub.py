"""Files of data sets on the Hugging Face hub or a mirror, and the folder that they are downloaded into.

HF_ENDPOINT sets another server with the hub's API, HF_TOKEN is sent to it, and HF_HUB_OFFLINE disables all requests. A
mirror is a plain folder on a web server, accessed without a token.

`manifest.json` of the folder lists the training shards, the validation shard, and the checksums of the downloaded ones.
One process at a time downloads; others wait for the files.
"""

import fnmatch
import os
import re
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_lit.common.downloads import (
    DiskFullError,
    DownloadProgress,
    download,
    file_sha256,
    locked,
    read_url,
    with_retries,
)
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json

CHECKSUMS = "SHA256SUMS"
"""Optional file of a mirror with names and checksums, written by `sha256sum * > SHA256SUMS`."""
MANIFEST = "manifest.json"
FAILED = ".failed.json"
LOCK = ".download.lock"
POLL_S = 0.2
IDLE_POLLS = 5
"""Number of consecutive checks that must find no running download, because there can be a gap between two downloads."""


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
        return self.mirror or f"{self.repo} ({_endpoint() or 'huggingface.co'})"

    def fetch(
        self, file: RemoteFile, path: Path, pause: Callable[[float], object], progress: Callable[[int], None]
    ) -> str:
        """Download a file, and check that a parquet file is complete; see `download`."""
        from huggingface_hub import hf_hub_url

        where = {"repo_type": "dataset", "revision": self.revision, "endpoint": _endpoint()}
        return download(
            self._mirrored(file.path) if self.mirror else hf_hub_url(self.repo, file.path, **where),
            path,
            file.sha256,
            size=file.size,
            token=False if self.mirror else None,
            check=_check_parquet if file.path.endswith(".parquet") else None,
            pause=pause,
            progress=progress,
        )

    def files(self, pattern: str) -> list[RemoteFile]:
        """Return the files whose path matches a shell pattern (* also matches slashes), sorted; UserError without any."""
        if self.mirror:
            found = self.mirrored_files()
        else:
            found = with_retries(lambda: self._listed(pattern), f"the list of files of {self.name}")
        found.sort(key=lambda file: file.path)
        if chosen := [file for file in found if fnmatch.fnmatchcase(file.path, pattern)]:
            return chosen
        some = ", ".join(file.path for file in found[:5]) or "none"
        hint = f"; a mirror needs a file list, written by `sha256sum * > {CHECKSUMS}`" if self.mirror else ""
        raise UserError(f"{self.name} has no file that matches {pattern!r} (it has, among others: {some}){hint}")

    def mirrored_files(self) -> list[RemoteFile]:
        """Return the files in the list of the mirror, with their checksums; empty without a mirror or list."""
        from huggingface_hub.errors import HfHubHTTPError

        def ask() -> str:
            try:
                return read_url(url)
            except HfHubHTTPError as error:
                if error.response.status_code == 404:
                    return ""
                raise

        if not self.mirror:
            return []
        url = self._mirrored(CHECKSUMS)
        files = []
        for number, line in enumerate(with_retries(ask, url).splitlines(), 1):
            found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
            if found is None:
                raise UserError(f"{url}, line {number} is not a checksum and a name")
            files.append(RemoteFile(path=found[2], sha256=found[1].lower()))
        return files

    def _mirrored(self, path: str) -> str:
        return f"{(self.mirror or '').rstrip('/')}/{urllib.parse.quote(path)}"

    def _listed(self, pattern: str) -> list[RemoteFile]:
        from huggingface_hub import HfApi, RepoFile

        folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
        tree = HfApi(endpoint=_endpoint()).list_repo_tree(
            self.repo, folder or None, recursive=True, revision=self.revision, repo_type="dataset"
        )
        return [
            RemoteFile(path=entry.path, size=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None)
            for entry in tree
            if isinstance(entry, RepoFile)
        ]


class ShardFolder:
    """The folder; its state is in files and shared by all processes."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest_lock = threading.Lock()

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None before the first download."""
        path = self.folder / MANIFEST
        found = read_json(path) if path.is_file() else None
        if found is not None and (not isinstance(found, dict) or not {"files", "train", "validation"} <= found.keys()):
            raise UserError(f"{path} is not the manifest of a download; delete it to start over")
        return found

    def describe(self, source: DataSet, train: Sequence[RemoteFile], validation: RemoteFile) -> None:
        """Write the manifest, keeping the entries of existing files; UserError if the folder contains another data set."""
        old = self.manifest() or {"repo": source.repo, "files": {}}
        if old["repo"] != source.repo:
            raise UserError(f"'{self.folder}' contains {old['repo']}, not {source.repo}; use another folder")
        files = old["files"]
        for file in [*train, validation]:
            known = {"path": file.path, "size": file.size, "sha256": file.sha256}
            before = files.get(file.name, {})
            files[file.name] = {key: before.get(key) or value for key, value in known.items()}
        names = {"train": [file.name for file in train], "validation": validation.name}
        self._write({"repo": source.repo, "revision": source.revision, **names, "files": files})

    def remote(self, names: Iterable[str]) -> list[RemoteFile]:
        """Return files of the manifest by name."""
        manifest = self.manifest()
        assert manifest is not None, "the folder has just been described"
        return [RemoteFile(**manifest["files"][name]) for name in names]

    def missing(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Return the missing files; UserError if the size of an existing file has changed since its download."""
        absent = []
        known = (self.manifest() or {"files": {}})["files"]
        for file in files:
            path = self.folder / file.name
            size = known.get(file.name, {}).get("size") or file.size
            if not path.is_file():
                absent.append(file)
            elif size is not None and path.stat().st_size != size:
                raise UserError(
                    f"'{path}' has {path.stat().st_size:,} bytes, but {size:,} when it was downloaded: it has been "
                    "changed; delete it to download it again"
                )
        return absent

    def fetch(
        self,
        source: DataSet,
        files: Sequence[RemoteFile],
        connections: int = 8,
        is_silent: bool = False,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """Download the missing files in parallel, in this order; UserError names those that failed, not the others."""
        shown = DownloadProgress(is_silent)
        absent = self.missing(files)
        self._check_space(absent)
        (self.folder / FAILED).unlink(missing_ok=True)
        stop = threading.Event()

        def fetch_one(file: RemoteFile) -> None:
            def progress(num_bytes: int) -> None:
                if stop.is_set():
                    raise UserError("stopped")
                shown.add(0, num_bytes)

            progress(0)
            self._arrived(file, source.fetch(file, self.folder / file.name, pause or stop.wait, progress))
            shown.add(1, 0)

        failures: list[str] = []
        with ThreadPoolExecutor(max(1, connections), thread_name_prefix="download") as pool:
            try:
                for future in as_completed([pool.submit(fetch_one, file) for file in absent]):
                    error = future.exception()
                    if isinstance(error, DiskFullError):
                        failures.insert(0, str(error))
                        stop.set()
                    elif isinstance(error, UserError):
                        failures += [] if stop.is_set() else [str(error)]
                    elif error is not None:
                        raise error
            except BaseException:  # Ctrl-C
                stop.set()  # running downloads stop at the next chunk, and partial files are kept
                raise
        if failures:
            more = f" (and {len(failures) - 3} more)" if len(failures) > 3 else ""
            raise UserError("; ".join(failures[:3]) + more)
        shown.end()

    def fetch_alone(
        self, source: DataSet, files: Sequence[RemoteFile], connections: int, is_silent: bool = False
    ) -> None:
        """Download missing files unless another process is downloading into this folder; then wait for the files."""
        while self.missing(files):
            with locked(self.folder / LOCK, wait=False) as is_ours:
                if is_ours:
                    self.fetch(source, files, connections, is_silent)
                    return
            time.sleep(POLL_S)

    def wait_for(self, name: str) -> None:
        """Wait for a file that another process is downloading; UserError if that process has failed or does not exist."""
        path, failed = self.folder / name, self.folder / FAILED
        idle_polls = 0
        while not path.is_file():
            if failed.is_file():
                raise UserError(f"'{path}' has not arrived: {read_json(failed)['error']}")
            with locked(self.folder / LOCK, wait=False) as nobody_downloads:
                idle_polls = idle_polls + 1 if nobody_downloads else 0
            if idle_polls == IDLE_POLLS and not path.is_file():
                raise UserError(
                    f"'{path}' does not exist, and no process is downloading it; "
                    "start again, or download the rest first with `nanochat-lit data download`"
                )
            time.sleep(POLL_S)

    def pin_validation(self, wanted: str | None = None) -> None:
        """Raise UserError if the validation shard differs from its first download, or from the sha256 `wanted`."""
        manifest = self.manifest()
        assert manifest is not None, "prepare comes first"
        name = manifest["validation"]
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"the validation shard '{path}' is missing; download it again")
        found = file_sha256(path)
        before = manifest["files"][name].get("sha256")
        for expected, where in ((wanted, "validation_sha256 of the recipe"), (before, f"'{self.folder / MANIFEST}'")):
            if expected is not None and expected.lower() != found:
                raise UserError(
                    f"the validation shard '{path}' has the sha256 {found}, but {where} has {expected}: "
                    "metrics would not be comparable; delete the file to download it again"
                )
        if before is None:
            self._arrived(RemoteFile(path=manifest["files"][name]["path"]), found)

    def _arrived(self, file: RemoteFile, sha256: str) -> None:
        with self._manifest_lock:
            manifest = self.manifest()
            if manifest is not None:
                size = (self.folder / file.name).stat().st_size
                manifest["files"][file.name] = {"path": file.path, "size": size, "sha256": sha256}
                self._write(manifest)

    def _write(self, manifest: dict[str, Any]) -> None:
        path = self.folder / MANIFEST
        if not path.is_file() or read_json(path) != manifest:  # a complete folder may be read-only
            write_json(path, manifest)

    def _check_space(self, files: Sequence[RemoteFile]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sized = [file for file in files if file.size]
        partial = [part for file in sized for part in self.folder.glob(f".{file.name}.*.partial")]
        needed = sum(file.size or 0 for file in sized) - sum(part.stat().st_size for part in partial)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the {len(files)} shards need {needed:,} bytes and '{self.folder}' has {free:,} free; "
                "free disk space, use another folder, or fewer shards"
            )


def _check_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        pyarrow.parquet.ParquetFile(path).close()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"the received file is not a complete parquet file ({reason}) and was discarded") from None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None

"""A download folder of a data set's shards.

`manifest.json` lists the training shards, the validation shard, and the checksums of the downloaded ones. One process
at a time downloads; others wait for the files.
"""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from nanochat_lit.common.download_progress import Report
from nanochat_lit.common.downloads import DiskFullError, file_sha256, locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.data.hub import DataSet, RemoteFile

MANIFEST = "manifest.json"
FAILED = ".failed.json"
LOCK = ".download.lock"
POLL_S = 0.2
IDLE_POLLS = 5
"""Number of consecutive checks that must find no running download, because there can be a gap between two downloads."""


class ShardFolder:
    """The folder; its state is in files and shared by all processes."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest_lock = threading.Lock()

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None before the first download."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return None
        found = read_json(path)
        if not isinstance(found, dict) or not isinstance(found.get("files"), dict) or "validation" not in found:
            raise UserError(f"{path} is not the manifest of a download; delete it to start over")
        return found

    def describe(self, repo: str, revision: str, train: Sequence[RemoteFile], validation: RemoteFile) -> None:
        """Write the manifest; keeps the entries of existing files.

        Raises:
            UserError: If the folder contains another data set.
        """
        old = self.manifest() or {"repo": repo, "files": {}}
        if old["repo"] != repo:
            raise UserError(f"'{self.folder}' contains {old['repo']}, not {repo}; use another folder")
        files = old["files"]
        for file in [*train, validation]:
            known = {"path": file.path, "size": file.size, "sha256": file.sha256}
            before = files.get(file.name, {})
            files[file.name] = {key: before.get(key) or value for key, value in known.items()}
        names = {"train": [file.name for file in train], "validation": validation.name}
        self._write({"repo": repo, "revision": revision, **names, "files": files})

    def missing(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Return the missing files.

        Raises:
            UserError: If the size of an existing file has changed since its download.
        """
        absent = []
        known = (self.manifest() or {"files": {}})["files"]
        for file in files:
            path = self.folder / file.name
            if not path.is_file():
                absent.append(file)
                continue
            size = known.get(file.name, {}).get("size") or file.size
            if size is not None and path.stat().st_size != size:
                raise UserError(
                    f"'{path}' has {path.stat().st_size:,} bytes, but {size:,} when it was downloaded: it has been "
                    "changed; delete it to download it again"
                )
        return absent

    def fetch(
        self,
        source: DataSet,
        files: Sequence[RemoteFile],
        check: Callable[[Path], None],
        *,
        connections: int = 8,
        report: Report | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """Download the missing files in parallel, in this order.

        Args:
            source: Data set to download from.
            files: Files to download.
            check: Raises UserError for an invalid file.
            connections: Number of parallel downloads.
            report: Progress callback.
            pause: Sleep function of seconds; None uses a sleep that ends when downloading stops.

        Raises:
            UserError: If downloads failed; names the files. All others are complete.
        """
        absent = self.missing(files)
        self._check_space(absent)
        stop = threading.Event()

        def fetch_one(file: RemoteFile) -> None:
            def progress(num_bytes: int) -> None:
                if stop.is_set():
                    raise UserError("stopped")
                if report is not None:
                    report(0, num_bytes)

            sha256 = source.fetch(file, self.folder / file.name, check, pause or stop.wait, progress)
            self._arrived(file, sha256)
            if report is not None:
                report(1, 0)

        with ThreadPoolExecutor(max(1, connections), thread_name_prefix="download") as pool:
            futures = [pool.submit(fetch_one, file) for file in absent]
            try:
                failures = _outcome(futures, stop)
            except BaseException:  # Ctrl-C: running downloads stop at the next chunk, and partial files are kept
                stop.set()
                for future in futures:
                    future.cancel()
                raise
        if failures:
            more = f" (and {len(failures) - 3} more)" if len(failures) > 3 else ""
            raise UserError("; ".join(failures[:3]) + more)

    def fetch_alone(self, files: Sequence[RemoteFile], fetch: Callable[[], None]) -> None:
        """Call `fetch` unless another process is downloading into this folder; then wait for the files."""
        while self.missing(files):
            with locked(self.folder / LOCK, wait=False) as is_ours:
                if is_ours:
                    (self.folder / FAILED).unlink(missing_ok=True)
                    fetch()
                    return
            time.sleep(POLL_S)

    def wait_for(self, name: str) -> None:
        """Wait for a file that another process is downloading.

        Raises:
            UserError: If that process has failed or does not exist.
        """
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

    def say_failed(self, error: str) -> None:
        """Report a failure to waiting processes."""
        write_json(self.folder / FAILED, {"error": error})

    def pin_validation(self, wanted: str | None = None) -> str:
        """Compare the validation shard with its first download; return its sha256.

        Args:
            wanted: Expected sha256 of the recipe.

        Raises:
            UserError: If the file differs.
        """
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
        return found

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
        needed = sum(file.size or 0 for file in files)
        needed -= sum(
            part.stat().st_size for file in files if file.size for part in self.folder.glob(f".{file.name}.*.partial")
        )
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the {len(files)} shards need {needed:,} bytes and '{self.folder}' has {free:,} free; "
                "free disk space, use another folder, or fewer shards"
            )


def whole_file_check(files: Sequence[RemoteFile]) -> Callable[[Path], None]:
    """Return a check for downloaded files of the expected type.

    Args:
        files: Expected files, of one type.
    """
    is_parquet = bool(files) and files[0].path.endswith(".parquet")

    def check(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        if not is_parquet:
            return
        try:
            pyarrow.parquet.ParquetFile(path).close()
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"the received file is not a complete parquet file ({reason}) and was discarded") from None

    return check


def _outcome(futures: Sequence["Future[None]"], stop: threading.Event) -> list[str]:
    """Wait for all downloads and return their errors. A full disk stops the remaining downloads."""
    failures: list[str] = []
    open_futures = set(futures)
    while open_futures:
        done, open_futures = wait(open_futures, timeout=0.5, return_when="FIRST_COMPLETED")
        for future in done:
            if future.cancelled():
                continue
            error = future.exception()
            if isinstance(error, DiskFullError):
                stop.set()
                for other in futures:
                    other.cancel()
                failures.insert(0, str(error))
            elif isinstance(error, UserError):
                if not stop.is_set():
                    failures.append(str(error))
            elif error is not None:
                raise error
    return failures

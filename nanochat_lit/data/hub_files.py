"""Sources whose files are downloaded from the Hugging Face hub or a mirror."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanochat_lit.common.download_progress import Report
from nanochat_lit.common.downloads import locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import cache_folder
from nanochat_lit.data.hub import DataSet, RemoteFile
from nanochat_lit.data.record_files import RecordFile
from nanochat_lit.data.record_kinds import family_of
from nanochat_lit.data.shard_folder import FAILED, LOCK, ShardFolder, whole_file_check
from nanochat_lit.data.shards import ShardSource
from nanochat_lit.data.splits import FileSplit, split_of

WINDOW = 4


_STOP_S = 10.0


class BackgroundDownload:
    """Handle of the download process.

    Args:
        folder: Target folder.
        source: Data set to download from.
        files: Files in the order of need.
        connections: Number of parallel downloads.
    """

    def __init__(self, folder: Path, source: DataSet, files: Sequence[RemoteFile], connections: int) -> None:
        plan = {
            "folder": str(folder.resolve()),
            "source": asdict(source),
            "files": [asdict(file) for file in files],
            "connections": connections,
        }
        package_parent = str(Path(__file__).resolve().parents[2])
        paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nanochat_lit.data.hub_files"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # protects it from Ctrl-C: the run may still need data before its last checkpoint
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plan) + "\n")
        self._process.stdin.flush()  # left open: end of file signals the end of this process
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it now has the lock, so that waiting readers know that a download is running

    def stop(self) -> None:
        """Stop the process; complete and partial files are kept."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def main() -> None:
    """Download according to the plan on stdin; exit at the end of stdin."""
    plan = json.loads(sys.stdin.readline())

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    files = [RemoteFile(**file) for file in plan["files"]]
    shards = ShardFolder(plan["folder"])

    def ready() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    try:
        with locked(shards.folder / LOCK, wait=False) as is_ours:
            if is_ours:
                _fetch(plan, shards, files, ready)
                return
        ready()  # another run is downloading into this folder
        with locked(shards.folder / LOCK):
            _fetch(plan, shards, files, lambda: None)
    except BaseException as error:
        shards.say_failed(str(error))
        raise


def _fetch(plan: dict[str, Any], shards: ShardFolder, files: list[RemoteFile], ready: Callable[[], None]) -> None:
    (shards.folder / FAILED).unlink(missing_ok=True)
    ready()
    source = DataSet(**plan["source"])
    shards.fetch(source, files, whole_file_check(files), connections=plan["connections"])


if __name__ == "__main__":
    main()


class HubFiles(ShardSource):
    """Files of a hub data set, downloaded into a folder; training starts once the first ones are complete.

    Every epoch has a seeded order of shards. The validation shard is a fixed file, independent of the number of
    training shards; a changed file raises an error.

    Args:
        repo: OWNER/NAME of the data set.
        pattern: Shell pattern of files; * also matches slashes.
        num_shards: Number of training files, the first ones by name.
        validation: Path of the validation file; None is the last matching file by name.
        validation_sha256: Its checksum; None uses that of the first download.
        folder: Download folder; None is a folder of the user's cache.
        text_column: Column or field of the text.
        revision: Branch, tag or commit.
        seed: Seed of the order of shards, row groups and records.
        window: Shards whose row groups are shuffled together; training starts once this many are downloaded.
        connections: Number of parallel downloads.
    """

    def __init__(  # noqa: PLR0913 - the signature is the list of keys that a recipe can set
        self,
        repo: str,
        pattern: str = "*.parquet",
        num_shards: int = 8,
        validation: str | None = None,
        validation_sha256: str | None = None,
        folder: str | None = None,
        text_column: str = "text",
        revision: str = "main",
        seed: int = 0,
        window: int = WINDOW,
        connections: int = 8,
    ) -> None:
        for name, value in (("num_shards", num_shards), ("window", window), ("connections", connections)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self.data_set = DataSet(repo=repo, revision=revision)
        self.pattern = pattern
        self.num_shards = num_shards
        self.validation_path = validation
        self.validation_sha256 = validation_sha256
        self.connections = connections
        self.shards = ShardFolder(folder or cache_folder() / "datasets" / repo.replace("/", "__"))
        super().__init__(self.shards.folder, "text", seed, window)
        self.text_column = text_column
        self._here: set[int] = set()
        self._background: BackgroundDownload | None = None

    @property
    def name(self) -> str:
        """Name of the data set and its folder."""
        return f"{self.data_set.repo} in '{self.path}'"

    def choose(self, source: DataSet) -> tuple[list[RemoteFile], RemoteFile]:
        """Return the training files and the validation file, by the file list of the hub or mirror."""
        files = source.files(self.pattern)
        splits = {file.path: split_of(file.path) for file in files}
        by_path = {file.path: file for file in files}
        held_out = [path for path, split in splits.items() if split == "val"] or [
            path for path, split in splits.items() if split != "test"
        ]
        chosen = by_path.get(self.validation_path or held_out[-1]) if held_out or self.validation_path else None
        if chosen is None:
            raise UserError(f"{source.name} has no validation file {self.validation_path or 'other than tests'!r}")
        train = [file for file in files if file != chosen and splits[file.path] not in ("val", "test")]
        if len(train) < self.num_shards:
            raise UserError(
                f"{source.name} has {len(train)} training files that match {self.pattern!r}, "
                f"but num_shards is {self.num_shards}"
            )
        return train[: self.num_shards], chosen

    def prepare(self, mirror: str | None = None, report: Report | None = None) -> None:
        """Download the validation shard and the first window; the rest is downloaded during training."""
        source = self._describe(mirror)
        order = [self.files[-1].path.name] + [self.files[index].path.name for index in self.file_order("train", 0)]
        files = self._remote(order)
        num_needed = 1 + (self.window or len(files))
        needed, rest = files[:num_needed], files[num_needed:]
        self.shards.fetch_alone(needed, lambda: self._fetch(source, needed, report))
        self.shards.pin_validation(self.validation_sha256)
        if missing := self.shards.missing(rest):
            self._background = BackgroundDownload(self.shards.folder, source, missing, self.connections)

    def download(self, mirror: str | None = None, report: Report | None = None) -> None:
        """Download all files.

        Args:
            mirror: URL to download from instead of the hub.
            report: Progress callback.
        """
        source = self._describe(mirror)
        files = self._remote([file.path.name for file in [self.files[-1], *self.files[:-1]]])
        self.shards.fetch_alone(files, lambda: self._fetch(source, files, report))
        self.shards.pin_validation(self.validation_sha256)

    def close(self) -> None:
        """Stop a background download; downloaded data are kept."""
        if self._background is not None:
            self._background.stop()
            self._background = None

    def find_split(self) -> FileSplit:
        """Return the files in the folder's manifest; some may not be downloaded yet."""
        manifest = self.shards.manifest()
        if manifest is None:
            raise UserError(f"'{self.path}' has no shards of {self.data_set.repo} yet; download them first")
        names = [*manifest["train"], manifest["validation"]]
        for name in names:
            if family_of(Path(name)) is None:
                raise UserError(f"{self.data_set.repo}: {name} has an unsupported file type; use another pattern")
        paths = [self.path / name for name in names]
        return FileSplit(train=paths[:-1], val=paths[-1:])

    @property
    def field(self) -> str:
        """Column or field of the text."""
        return self.text_column

    def opened(self, file: int) -> RecordFile:
        """Return a file by index; waits until it is downloaded."""
        if file not in self._here:
            self.shards.wait_for(self.files[file].path.name)
            self._here.add(file)
        return self.files[file]

    def check(self) -> None:
        """Open the downloaded files; their contents were checked on arrival."""
        for file in self.files:
            if file.path.is_file():
                file.check(thorough=False)

    def fingerprint(self) -> str:
        """Digest of the file names."""
        return "\n".join(file.path.name for file in self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_background": None}

    def _describe(self, mirror: str | None) -> DataSet:
        source = DataSet(repo=self.data_set.repo, revision=self.data_set.revision, mirror=mirror)
        manifest = self.shards.manifest()
        if manifest is None or manifest["repo"] != source.repo or len(manifest["train"]) != self.num_shards:
            train, validation = self.choose(source)
            self.shards.describe(source.repo, source.revision, train, validation)
        self._files = self._split = None
        self._here.clear()
        return source

    def _remote(self, names: Sequence[str]) -> list[RemoteFile]:
        manifest = self.shards.manifest()
        assert manifest is not None, "the folder has just been described"
        return [RemoteFile(**manifest["files"][name]) for name in names]

    def _fetch(self, source: DataSet, files: Sequence[RemoteFile], report: Report | None = None) -> None:
        self.shards.fetch(source, files, whole_file_check(files), connections=self.connections, report=report)


class ClimbMix(HubFiles):
    """ClimbMix: 400 billion tokens of web text in 6,542 shuffled shards of about 100 MB, plus a validation shard.

    Args:
        num_shards: Number of training shards, about 55 million tokens each; the GPT-2 speedrun needs 170.
        folder: Download folder; None is a folder of the user's cache.
        validation_sha256: Checksum of the validation shard; None uses that of the first download.
        seed: Seed of the order of shards, row groups and records.
        window: Shards whose row groups are shuffled together; training starts once this many are downloaded.
        connections: Number of parallel downloads.
    """

    last = 6542

    def __init__(
        self,
        num_shards: int = 170,
        folder: str | None = None,
        validation_sha256: str | None = None,
        seed: int = 0,
        window: int = WINDOW,
        connections: int = 8,
    ) -> None:
        super().__init__(
            "karpathy/climbmix-400b-shuffle", num_shards=num_shards, validation_sha256=validation_sha256, folder=folder,
            seed=seed, window=window, connections=connections,
        )  # fmt: skip
        if num_shards > self.last:
            raise UserError(f"num_shards is {num_shards}, but there are only {self.last} training shards")

    def choose(self, source: DataSet) -> tuple[list[RemoteFile], RemoteFile]:
        """Return the files by number, without a file list."""
        checksums = source.checksums()

        def shard(number: int) -> RemoteFile:
            path = f"shard_{number:05d}.parquet"
            return RemoteFile(path=path, sha256=checksums.get(path))

        return [shard(number) for number in range(self.num_shards)], shard(self.last)


class FineWebEdu(HubFiles):
    """FineWeb-Edu: 1.3 trillion tokens of educational web pages; by default its sample of 10 billion.

    Args:
        num_shards: Number of training files, about 2 GB each.
        sample: Folder of the data set: sample/10BT, sample/100BT, sample/350BT, or data/CC-MAIN-2024-10 and others.
        folder: Download folder; None is a folder of the user's cache.
        validation_sha256: Checksum of the validation file; None uses that of the first download.
        seed: Seed of the order of files, row groups and records.
        window: Files whose row groups are shuffled together; training starts once this many are downloaded.
        connections: Number of parallel downloads.
    """

    def __init__(
        self,
        num_shards: int = 4,
        sample: str = "sample/10BT",
        folder: str | None = None,
        validation_sha256: str | None = None,
        seed: int = 0,
        window: int = 1,
        connections: int = 8,
    ) -> None:
        super().__init__(
            "HuggingFaceFW/fineweb-edu", f"{sample}/*.parquet", num_shards, validation_sha256=validation_sha256,
            folder=folder, seed=seed, window=window, connections=connections,
        )  # fmt: skip


class DCLM(HubFiles):
    """DCLM-Baseline: 4 trillion tokens of web pages selected by a classifier, as compressed JSON lines.

    Args:
        num_shards: Number of training files.
        part: Folder of the data set; each folder numbers its shards from 0.
        folder: Download folder; None is a folder of the user's cache.
        validation_sha256: Checksum of the validation file; None uses that of the first download.
        seed: Seed of the order of files and records.
        window: Files whose records are shuffled together; training starts once this many are downloaded.
        connections: Number of parallel downloads.
    """

    def __init__(
        self,
        num_shards: int = 16,
        part: str = "global-shard_01_of_10/local-shard_0_of_10",
        folder: str | None = None,
        validation_sha256: str | None = None,
        seed: int = 0,
        window: int = WINDOW,
        connections: int = 8,
    ) -> None:
        super().__init__(
            "mlfoundations/dclm-baseline-1.0", f"{part}/*.jsonl.zst", num_shards, validation_sha256=validation_sha256,
            folder=folder, seed=seed, window=window, connections=connections,
        )  # fmt: skip

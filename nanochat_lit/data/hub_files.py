"""Data sets whose files are on the Hugging Face hub, or on a mirror of it, as sources."""

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
    """The process, seen from the one that started it.

    Args:
        folder: Where the files go.
        source: Where they come from.
        files: Which, in the order of need.
        connections: Downloads at the same time.
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
            start_new_session=True,  # Ctrl-C lets the run write its checkpoint first, which may need data
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plan) + "\n")
        self._process.stdin.flush()  # and left open: its end tells the process that we have ended
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has the lock now, so that who waits for a file knows that it is coming

    def stop(self) -> None:
        """End the process; what has arrived stays, also in parts."""
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
    """Download by the plan on stdin; end when stdin does."""
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
    """Files of a data set on the hub, downloaded into a folder; training begins when the first are there.

    The shards come in an order drawn from the seed, in every epoch another. The validation shard is one by name, however
    many shards there are to train on, and has to stay the file that it was.

    Args:
        repo: OWNER/NAME of the data set.
        pattern: Which of its files, as in a shell; * goes across folders.
        num_shards: Files to train on: the first by name.
        validation: Path of the file to validate with; None takes the last by name of all that match.
        validation_sha256: Its checksum; None takes what the first download has found.
        folder: Where the files are kept; None is a folder of the user's cache.
        text_column: Column or field that has the text.
        revision: Branch, tag or commit.
        seed: Order of shards, row groups and rows.
        window: Shards whose row groups are shuffled together; training starts once this many are downloaded.
        connections: Downloads at the same time.
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
                raise UserError(f"{name} is {value}, but must be at least 1")
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
        """The data set and the folder."""
        return f"{self.data_set.repo} in '{self.path}'"

    def choose(self, source: DataSet) -> tuple[list[RemoteFile], RemoteFile]:
        """The files to train on and the one to validate with, by the list of the hub or mirror."""
        files = source.files(self.pattern)
        splits = {file.path: split_of(file.path) for file in files}
        by_path = {file.path: file for file in files}
        held_out = [path for path, split in splits.items() if split == "val"] or [
            path for path, split in splits.items() if split != "test"
        ]
        chosen = by_path.get(self.validation_path or held_out[-1]) if held_out or self.validation_path else None
        if chosen is None:
            raise UserError(f"{source.name} has no file {self.validation_path or 'but tests'!r} to validate with")
        train = [file for file in files if file != chosen and splits[file.path] not in ("val", "test")]
        if len(train) < self.num_shards:
            raise UserError(
                f"{source.name} has {len(train)} files to train on that match {self.pattern!r}, "
                f"num_shards asks for {self.num_shards}"
            )
        return train[: self.num_shards], chosen

    def prepare(self, mirror: str | None = None, report: Report | None = None) -> None:
        """Download the validation shard and the first window; the rest follows while training has begun."""
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
        """Download all of it.

        Args:
            mirror: Address to download from instead of the hub.
            report: Told what arrives.
        """
        source = self._describe(mirror)
        files = self._remote([file.path.name for file in [self.files[-1], *self.files[:-1]]])
        self.shards.fetch_alone(files, lambda: self._fetch(source, files, report))
        self.shards.pin_validation(self.validation_sha256)

    def close(self) -> None:
        """Stop a download that goes on in the background; what has arrived stays."""
        if self._background is not None:
            self._background.stop()
            self._background = None

    def find_split(self) -> FileSplit:
        """The files that the folder shall hold, by its manifest; not all may have arrived."""
        manifest = self.shards.manifest()
        if manifest is None:
            raise UserError(f"'{self.path}' has no shards of {self.data_set.repo} yet; download them first")
        names = [*manifest["train"], manifest["validation"]]
        for name in names:
            if family_of(Path(name)) is None:
                raise UserError(f"{self.data_set.repo}: {name} is of no kind that can be read; give another pattern")
        paths = [self.path / name for name in names]
        return FileSplit(train=paths[:-1], val=paths[-1:])

    @property
    def field(self) -> str:
        """Column or field that has the text."""
        return self.text_column

    def opened(self, file: int) -> RecordFile:
        """The file of this number, once it has arrived."""
        if file not in self._here:
            self.shards.wait_for(self.files[file].path.name)
            self._here.add(file)
        return self.files[file]

    def check(self) -> None:
        """Open the files that have arrived; each was looked at when it came."""
        for file in self.files:
            if file.path.is_file():
                file.check(thorough=False)

    def fingerprint(self) -> str:
        """The names of the files."""
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
    """ClimbMix, 400 billion tokens of web text in 6,542 shuffled shards of about 100 MB, and one to validate with.

    Args:
        num_shards: Shards to train on, about 55 million tokens each; the GPT-2 speedrun needs 170.
        folder: Where they are kept; None is a folder of the user's cache.
        validation_sha256: Checksum of the validation shard; None takes what the first download has found.
        seed: Order of shards, row groups and rows.
        window: Shards whose row groups are shuffled together; training starts once this many are downloaded.
        connections: Downloads at the same time.
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
            raise UserError(f"num_shards is {num_shards}, but there are {self.last} to train on")

    def choose(self, source: DataSet) -> tuple[list[RemoteFile], RemoteFile]:
        """By number: no list is needed."""
        checksums = source.checksums()

        def shard(number: int) -> RemoteFile:
            path = f"shard_{number:05d}.parquet"
            return RemoteFile(path=path, sha256=checksums.get(path))

        return [shard(number) for number in range(self.num_shards)], shard(self.last)


class FineWebEdu(HubFiles):
    """FineWeb-Edu: web pages that teach something, 1.3 trillion tokens; by default from its sample of 10 billion.

    Args:
        num_shards: Files to train on, about 2 GB each.
        sample: Folder of the data set: sample/10BT, sample/100BT, sample/350BT, or data/CC-MAIN-2024-10 and others.
        folder: Where they are kept; None is a folder of the user's cache.
        validation_sha256: Checksum of the validation file; None takes what the first download has found.
        seed: Order of files, row groups and rows.
        window: Files whose row groups are shuffled together; training starts once this many are downloaded.
        connections: Downloads at the same time.
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
    """DCLM-Baseline: web pages that a classifier has chosen, 4 trillion tokens, as compressed JSON lines.

    Args:
        num_shards: Files to train on.
        part: Folder of the data set; shards are numbered anew in each.
        folder: Where they are kept; None is a folder of the user's cache.
        validation_sha256: Checksum of the validation file; None takes what the first download has found.
        seed: Order of files and rows.
        window: Files whose rows are shuffled together; training starts once this many are downloaded.
        connections: Downloads at the same time.
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

"""Sources on the Hugging Face hub: files of a data set, downloaded into a folder, and streams of any data set."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.paths import cache_folder, write_json
from nanochat_lit.data.hub import FAILED, DataSet, RemoteFile, ShardFolder
from nanochat_lit.data.records import RecordFile, TextCheck
from nanochat_lit.data.shards import ShardSource
from nanochat_lit.data.source import Split, TextSource
from nanochat_lit.data.splits import FileSplit, split_of
from nanochat_lit.data.text_files import family_of

WINDOW = 4
BUFFER_CHARS = 200_000_000
"""Maximum number of characters in the shuffle buffer, which bounds the memory for large records."""
_ROWS_AT_ONCE = 16
_STOP_S = 10.0


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
        check_at_least_one(num_shards=num_shards, window=window, connections=connections)
        self.data_set = DataSet(repo=repo, revision=revision)
        self.pattern = pattern
        self.num_shards = num_shards
        self.validation_path = validation
        self.validation_sha256 = validation_sha256
        self.connections = connections
        self.shards = ShardFolder(folder or cache_folder() / "datasets" / repo.replace("/", "__"))
        super().__init__(self.shards.folder, "text", seed, window)
        self.field = text_column
        self._here: set[int] = set()
        self._background: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        """Name of the data set and its folder."""
        return f"{self.data_set.repo} in '{self.path}'"

    def choose(self, source: DataSet) -> tuple[list[RemoteFile], RemoteFile]:
        """Return the training files and the validation file, by the file list of the hub or mirror."""
        files = source.files(self.pattern)
        splits = {file: split_of(file.path) for file in files}
        if self.validation_path is not None:
            held_out = [file for file in files if file.path == self.validation_path]
        else:
            held_out = [file for file in files if splits[file] == "val"]
            held_out = held_out or [file for file in files if splits[file] != "test"]
        if not held_out:
            raise UserError(f"{source.name} has no validation file {self.validation_path or 'other than tests'!r}")
        train = [file for file in files if file != held_out[-1] and splits[file] not in ("val", "test")]
        if len(train) < self.num_shards:
            raise UserError(
                f"{source.name} has {len(train)} training files that match {self.pattern!r}, "
                f"but num_shards is {self.num_shards}"
            )
        return train[: self.num_shards], held_out[-1]

    def prepare(self, mirror: str | None = None) -> None:
        """Download the validation shard and the first window; the rest is downloaded during training."""
        source, rest = self._download(mirror, self.window)
        if rest:
            self._background = _start_download(self.shards.folder, source, rest, self.connections)

    def download(self, mirror: str | None = None) -> None:
        """Download all files, from the hub or the URL of a mirror."""
        self._download(mirror, None)

    def close(self) -> None:
        """Stop a background download; downloaded data are kept."""
        process, self._background = self._background, None
        if process is None:
            return
        process.terminate()
        try:
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

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

    def _download(self, mirror: str | None, num_train: int | None) -> tuple[DataSet, list[RemoteFile]]:
        """Download the validation shard and the first training shards; return the data set and the missing files."""
        source = DataSet(repo=self.data_set.repo, revision=self.data_set.revision, mirror=mirror)
        manifest = self.shards.manifest()
        if manifest is None or manifest["repo"] != source.repo or len(manifest["train"]) != self.num_shards:
            self.shards.describe(source, *self.choose(source))
            for name in ("split", "files"):  # cached, of an earlier choice
                vars(self).pop(name, None)
            self._here.clear()
        files = self.shards.remote(self.files[index].path.name for index in [-1, *self.file_order("train", 0)])
        needed = files[: None if num_train is None else 1 + num_train]
        self.shards.fetch_alone(source, needed, self.connections)
        self.shards.pin_validation(self.validation_sha256)
        return source, self.shards.missing(files)


def _start_download(
    folder: Path, source: DataSet, files: Sequence[RemoteFile], connections: int
) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat_lit.data.hub_files"],
        cwd=Path(__file__).resolve().parents[2],  # so that the package is found
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # protects it from Ctrl-C: the run may still need data before its last checkpoint
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    plan = {"folder": str(folder.resolve()), "source": asdict(source), "connections": connections}
    process.stdin.write(json.dumps({**plan, "files": [asdict(file) for file in files]}) + "\n")
    process.stdin.flush()  # left open: end of file signals the end of this process
    process.stdout.readline()  # it now takes the lock, by which waiting readers see that a download is running
    return process


def main() -> None:
    """Download according to the plan on stdin, in a process of its own; exit at the end of stdin."""
    plan = json.loads(sys.stdin.readline())

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    shards = ShardFolder(plan["folder"])
    failed = shards.folder / FAILED
    failed.unlink(missing_ok=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        files = [RemoteFile(**file) for file in plan["files"]]
        shards.fetch_alone(DataSet(**plan["source"]), files, plan["connections"], is_silent=True)
    except BaseException as error:
        write_json(failed, {"error": str(error)})
        raise


class ClimbMix(HubFiles):
    """ClimbMix: 400 billion tokens of web text in 6,542 shuffled shards of about 100 MB, plus a validation shard.

    Args:
        num_shards: Number of training shards, about 55 million tokens each; the GPT-2 speedrun needs 170.
        options: Options of `HubFiles`.
    """

    last = 6542

    def __init__(self, num_shards: int = 170, **options: Any) -> None:
        super().__init__("karpathy/climbmix-400b-shuffle", "*.parquet", num_shards, None, **options)
        if num_shards > self.last:
            raise UserError(f"num_shards is {num_shards}, but there are only {self.last} training shards")

    def choose(self, source: DataSet) -> tuple[list[RemoteFile], RemoteFile]:
        """Return the files by number, without a file list."""
        checksums = {file.path: file.sha256 for file in source.mirrored_files()}

        def shard(number: int) -> RemoteFile:
            path = f"shard_{number:05d}.parquet"
            return RemoteFile(path=path, sha256=checksums.get(path))

        return [shard(number) for number in range(self.num_shards)], shard(self.last)


class FineWebEdu(HubFiles):
    """FineWeb-Edu: 1.3 trillion tokens of educational web pages; by default its sample of 10 billion.

    Args:
        num_shards: Number of training files, about 2 GB each.
        sample: Folder of the data set: sample/10BT, sample/100BT, sample/350BT, or data/CC-MAIN-2024-10 and others.
        window: Files whose row groups are shuffled together; training starts once this many are downloaded.
        options: Options of `HubFiles`.
    """

    def __init__(self, num_shards: int = 4, sample: str = "sample/10BT", window: int = 1, **options: Any) -> None:
        super().__init__(
            "HuggingFaceFW/fineweb-edu", f"{sample}/*.parquet", num_shards=num_shards, window=window, **options
        )


class DCLM(HubFiles):
    """DCLM-Baseline: 4 trillion tokens of web pages selected by a classifier, as compressed JSON lines.

    Args:
        num_shards: Number of training files.
        part: Folder of the data set; each folder numbers its shards from 0.
        options: Options of `HubFiles`.
    """

    def __init__(
        self, num_shards: int = 16, part: str = "global-shard_01_of_10/local-shard_0_of_10", **options: Any
    ) -> None:
        super().__init__("mlfoundations/dclm-baseline-1.0", f"{part}/*.jsonl.zst", num_shards=num_shards, **options)


class HubStream(TextSource):
    """A hub data set of any format, streamed without storing files.

    Texts are shuffled per epoch within a buffer of at most 200 million characters. Records that are null, empty,
    binary, not UTF-8 or longer than 10 million characters are skipped, with a warning for the first of each kind.

    Every reader reads the whole stream and uses its share, so the traffic grows with the number of readers. Resuming
    reads up to the position again, provided that the data set does not change: set a revision. For large runs prefer
    `HubFiles`, if the data set has parquet or jsonl files.

    Args:
        repo: Argument of `datasets.load_dataset`: OWNER/NAME, or a format such as parquet.
        subset: Configuration of the data set.
        split: Training split.
        val_split: Validation split; None holds out the first records of `split`.
        val_rows: Number of validation records.
        text_column: Column of the text.
        data_files: Files or patterns, if not all.
        revision: Commit, tag or branch of the data set; None is the current version.
        seed: Seed of the shuffle.
        buffer_size: Maximum number of texts in the shuffle buffer.
    """

    def __init__(
        self,
        repo: str,
        subset: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        val_rows: int = 1000,
        text_column: str = "text",
        data_files: str | list[str] | None = None,
        revision: str | None = None,
        seed: int = 0,
        buffer_size: int = 10_000,
    ) -> None:
        check_at_least_one(val_rows=val_rows, buffer_size=buffer_size)
        self.repo = repo
        self.subset = subset
        self.split = split
        self.val_split = val_split
        self.val_rows = val_rows
        self.text_column = text_column
        self.data_files = data_files
        self.revision = revision
        self.seed = seed
        self.buffer_size = buffer_size
        self._text_check = TextCheck(text_column, "data set")

    @property
    def name(self) -> str:
        """Name of the data set."""
        return f"{self.repo} ({self.split})"

    def check(self) -> None:
        """Read one record of each split."""
        for split in ("train", "val"):
            if next(self.documents(split), None) is None:
                raise UserError(f"{self.name} has no text for the {split} split")

    def validation(self) -> dict[str, str]:
        """Return the sha256 of the validation texts."""
        digest = hashlib.sha256()
        for text in self.documents("val"):
            digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
        rows = f"{self.val_split or self.split}, first {self.val_rows:,} rows"
        return {f"{self.repo} ({rows})": digest.hexdigest()}

    def documents(self, split: Split = "all") -> Iterator[str]:
        """Yield the texts in the order of the data set."""
        if split == "val":
            return self._texts(self.val_split or self.split, stop=self.val_rows)
        return self._texts(self.split, self.val_rows if split == "train" and self.val_split is None else 0)

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[str]:
        """Yield every `world_size`-th text; 'train' is shuffled within the buffer by seed and epoch."""
        texts = self.documents(split)
        if split == "train":
            texts = self._shuffled(texts, random.Random(f"{self.seed}-{epoch}"))
        return islice(texts, rank, None, world_size)

    def _load(self, split: str) -> Any:
        import datasets

        options = {"data_files": self.data_files, "revision": self.revision, "streaming": True}
        try:
            return datasets.load_dataset(self.repo, self.subset, split=split, **options)
        except Exception as error:  # noqa: BLE001 - offline, no such split, a broken cache: each has errors of its own
            raise UserError(f"{self.repo} ({split}) cannot be read from the Hugging Face hub {_short(error)}") from None

    def _texts(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[str]:
        name = f"{self.repo} ({split})"
        for number, value in enumerate(islice(self._values(split, name), start, stop), start):
            text = self._text_check.text(value, lambda number=number: f"{name}, row {number}")
            if text is not None:
                yield text

    def _values(self, split: str, name: str) -> Iterator[Any]:
        number = 0
        try:
            # in batches, because the data set's own iterator would distribute its files over DataLoader workers
            for batch in self._load(split).iter(batch_size=_ROWS_AT_ONCE):
                if self.text_column not in batch:
                    columns = ", ".join(batch) or "none"
                    raise UserError(f"{name} has no column {self.text_column!r} (columns: {columns})")
                yield from batch[self.text_column]
                number += len(batch[self.text_column])
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - of the network, of a damaged file, of any format
            raise UserError(f"{name} cannot be read on from row {number} {_short(error)}") from None

    def _shuffled(self, texts: Iterator[str], random_numbers: random.Random) -> Iterator[str]:
        buffer: list[str] = []
        num_chars = 0
        for text in texts:
            buffer.append(text)
            num_chars += len(text)
            while len(buffer) > self.buffer_size or num_chars > BUFFER_CHARS:
                chosen = random_numbers.randrange(len(buffer))
                buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
                num_chars -= len(buffer[-1])
                yield buffer.pop()
        random_numbers.shuffle(buffer)
        yield from buffer


def _short(error: Exception) -> str:
    return f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"


if __name__ == "__main__":
    main()

"""DataModules: the base class, and text for pretraining."""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nanochat_lit.common.distributed import rank, say, world_size
from nanochat_lit.common.downloads import DownloadProgress
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.data.loader import ResumableLoader, merged
from nanochat_lit.data.prepared import (
    ENCODE_BATCH_SIZE,
    TOKENIZER_FOLDER,
    batched,
    check_tokenizer,
    encoded_documents,
)
from nanochat_lit.data.shards import FileSource, text_column
from nanochat_lit.data.source import TextSource
from nanochat_lit.data.stream import ChatStream, PretrainStream
from nanochat_lit.evaluation.bpb import document_batches
from nanochat_lit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule
    from nanochat_lit.training.pretrain import PretrainModule

Batch = dict[str, torch.Tensor]

_LONG_DOCUMENTS = {
    "split": "split into sequences that each begin with BOS; no tokens are lost",
    "crop": "cropped; use --data.long_documents split to keep the remainder",
}


def pin_validation(path: Path, found: dict[str, str], must_match: bool) -> None:
    """Write the checksums (SHA-256 by name) of the validation files, or compare them with those of the run's start.

    If they `must_match` (the run is resumed or evaluated), a UserError names a file that is missing or differs.
    """
    if not (must_match and path.is_file()):
        if found:
            write_json(path, found)
        return
    for name, sha256 in read_json(path).items():
        if name not in found:
            others = ", ".join(found) or "nothing"
            raise UserError(f"this run validates with '{name}', but the data now have {others}; restore the file")
        if found[name] != sha256:
            raise UserError(
                f"the validation file '{name}' has changed since this run began (sha256 {found[name]}, then {sha256}): "
                "metrics would not be comparable; restore the file, or start a new run"
            )


class LanguageDataModule(LightningDataModule):
    """Base class: the tokenizer, and resumable loaders around streams."""

    def __init__(
        self, tokenizer: str | None, micro_batch_size: int | Literal["auto"], num_workers: int, seed: int
    ) -> None:
        super().__init__()
        if micro_batch_size != "auto" and micro_batch_size < 1:
            raise UserError(f"micro_batch_size is {micro_batch_size}; it must be at least 1, or auto")
        self.tokenizer_path = tokenizer
        self.micro_batch_size: int | Literal["auto"] = micro_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_loader: Any = None
        """Loader that training reads from; set when training starts."""
        self.positions: list[dict[str, Any]] = []
        """Position of every rank's loader in the checkpoint that the run resumes; empty for a new run."""

    tokenizer: Tokenizer

    @property
    def module(self) -> "LanguageModule":
        """Module that is trained on these data."""
        assert self.trainer is not None
        return cast("LanguageModule", self.trainer.lightning_module)

    @property
    def sequence_len(self) -> int:
        """Context of the model in training."""
        return self.module.config.sequence_len

    @property
    def rows(self) -> int:
        """Sequences per device per forward pass; a placeholder until the value is known."""
        return 1 if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        assert self.trainer is not None
        return Path(self.trainer.default_root_dir)

    def setup(self, stage: str) -> None:
        base = self.module.start_from()
        path = self.tokenizer_path or self.run_dir / "tokenizer"
        self.tokenizer = base if base is not None and self.tokenizer_path is None else Tokenizer.load(path)

    def loader(self, stream: PretrainStream | ChatStream) -> ResumableLoader:
        """Return a loader of the stream, at the position of the checkpoint; UserError without an item for each reader."""
        readers, source = world_size() * max(1, self.num_workers), stream.source
        if isinstance(source, TextSource):
            rows = source.num_rows("train", enough=readers)
            if rows is not None and rows < readers:
                workers = f" x {self.num_workers} loader workers" if self.num_workers else ""
                raise UserError(
                    f"{source.name} has {rows} training item(s), too few for {world_size()} rank(s){workers}; "
                    "use more data, or fewer ranks or workers"
                )
        loader = ResumableLoader(stream, self.num_workers, pin_memory=self.module.device.type in ("cuda", "xpu"))
        if self.positions:
            loader.seek(_own_position(stream, self.positions, loader.num_readers))
        self.train_loader = loader
        return loader

    def val_batches(self) -> Iterator[Batch]:
        """Yield all batches of a validation, regardless of rank."""
        raise NotImplementedError

    def val_dataloader(self) -> "DataLoader[Batch]":
        """Return a loader that distributes the batches of a validation over the ranks.

        The batches do not depend on the number of ranks, so results are identical: none is dropped, repeated or
        reshaped. Ranks may get different numbers of batches, or none.
        """
        return DataLoader(Replay(lambda: islice(self.val_batches(), rank(), None, world_size())), batch_size=None)

    def test_dataloader(self) -> "DataLoader[Batch]":
        return self.val_dataloader()


def _own_position(
    stream: PretrainStream | ChatStream, positions: list[dict[str, Any]], num_readers: int
) -> dict[str, Any]:
    if len(positions) == world_size() and len(positions[0]["readers"]) == num_readers:
        return positions[rank()]
    before = sum(len(position["readers"]) for position in positions)
    say(
        f"the data were read by {before} reader(s) (ranks x loader workers), now by {num_readers * world_size()}: "
        "resuming with unused data"
    )
    return merged(stream, positions, num_readers, world_size())


class TextDataModule(LanguageDataModule):
    """Pretraining text from .parquet, .jsonl or .txt files, from shards written by `data prepare`, or from a source.

    Args:
        path: File or folder. File names such as train, val and test determine the split. Otherwise the last file by
            name, or the last 1% of a single file, is for validation.
        source: Text source to use instead of a path, such as nanochat_lit.data.hub_files.ClimbMix; it has its own seed.
        mirror: URL of a folder with the same files, to download from instead of the hub.
        tokenizer: Folder of a tokenizer; None uses the tokenizer of prepared shards, or trains one in the run folder on
            the training split.
        vocab_size: Vocabulary size of a tokenizer trained here: a number, or auto (by corpus size and depth).
        micro_batch_size: Sequences per device per forward pass: a number, or auto (the most that fit the device's
            memory).
        long_documents: split cuts documents longer than the context into chunks that each begin with BOS; crop drops
            the remainder. The default is split, which keeps all of a small corpus and trains equally well per token.
        buffer_size: Documents that best-fit packing chooses from.
        val_docs: Number of validation documents to evaluate on.
        tokenizer_chars: Maximum number of characters to train a tokenizer on.
        split_scripts: Split tokens at changes of script, treating punctuation as a script: true, false, or auto (true
            up to depth 7). For a tokenizer trained here.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Seed of the order of files, row groups and records of a path.
        validation: Name of the validation file in the folder `path`; None decides by the file names.
    """

    def __init__(  # noqa: PLR0913 - the signature is the list of keys that a recipe can set
        self,
        path: str | None = None,
        source: TextSource | None = None,
        mirror: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int | Literal["auto"] = "auto",
        micro_batch_size: int | Literal["auto"] = 8,
        long_documents: Literal["split", "crop"] = "split",
        buffer_size: int = 1000,
        val_docs: int = 100,
        tokenizer_chars: int = 2_000_000_000,
        split_scripts: bool | Literal["auto"] = "auto",
        num_workers: int = 0,
        seed: int = 0,
        validation: str | None = None,
    ) -> None:
        super().__init__(tokenizer, micro_batch_size, num_workers, seed)
        if (path is None) == (source is None):
            both = "are both set; set one of them to null" if path is not None else "are both null; set one of them"
            raise UserError(f"data.path and data.source {both}")
        self.path = path
        self.mirror = mirror
        self.vocab_size: int | Literal["auto"] = vocab_size
        self.long_documents: Literal["split", "crop"] = long_documents
        self.buffer_size = buffer_size
        self.val_docs = val_docs
        self.tokenizer_chars = tokenizer_chars
        self.split_scripts: bool | Literal["auto"] = split_scripts
        self.validation = validation
        self._source = source

    @property
    def source(self) -> TextSource:
        """Source of the text."""
        if self._source is None:
            self._source = FileSource(cast(str, self.path), text_column(self.path), self.seed, self.validation)
        return self._source

    def prepare_data(self) -> None:
        """Download and check the data, pin the validation files, and train a tokenizer if the run has none."""
        assert self.trainer is not None
        module = cast("PretrainModule", self.module)
        module.check_batch(self.rows, self.trainer.world_size)
        if self.path is None:
            print(f"data: {self.source.name}", file=sys.stderr)
        progress = DownloadProgress()
        self.source.prepare(self.mirror, progress.report)
        progress.end()
        self.source.check()
        if isinstance(self.source, FileSource):
            print(f"data: {self.source.summary()}", file=sys.stderr)
        pin_validation(
            self.run_dir / "validation.json",
            self.source.validation(),
            must_match=module.is_resuming or self.trainer.state.fn != "fit",
        )
        if self.tokenizer_path is not None:
            return
        if text_column(self.path) == "tokens" and not (self.run_dir / "tokenizer").exists():
            Tokenizer.load(Path(cast(str, self.path)) / TOKENIZER_FOLDER).save(self.run_dir / "tokenizer")
        if (self.run_dir / "tokenizer").exists():
            self._check_own_tokenizer()
            return
        print("training the tokenizer ...", file=sys.stderr)
        tokenizer = Tokenizer.train(
            self.source.documents("train"), self.vocab_size, max_chars=self.tokenizer_chars, depth=module.depth,
            split_scripts=self.split_scripts,
        )  # fmt: skip
        tokenizer.save(self.run_dir / "tokenizer")
        rule = "" if self.vocab_size != "auto" else f" (auto: from depth {module.depth} and corpus size)"
        print(f"tokenizer: {tokenizer.vocab_size:,} tokens{rule}", file=sys.stderr)

    def teardown(self, stage: str) -> None:
        self.source.close()

    def _check_own_tokenizer(self) -> None:
        folder = self.run_dir / "tokenizer"
        found = Tokenizer.load(folder).vocab_size
        if self.vocab_size not in ("auto", found):
            raise UserError(
                f"{folder} is from an earlier run and has {found} tokens, but vocab_size is {self.vocab_size}; "
                "use another run_dir, or delete that folder"
            )
        print(f"tokenizer: {folder}, {found:,} tokens", file=sys.stderr)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if isinstance(self.source, FileSource) and self.source.column == "tokens":
            check_tokenizer(self.source.path, self.tokenizer)  # before anything is read with it

    def train_dataloader(self) -> ResumableLoader:
        say(f"documents longer than the context: {_LONG_DOCUMENTS[self.long_documents]}")
        return self.loader(
            PretrainStream(
                texts=self.source,
                tokenizer=self.tokenizer,
                sequence_len=self.sequence_len,
                micro_batch_size=self.rows,
                seed=self.seed,
                rank=rank(),
                world_size=world_size(),
                buffer_size=self.buffer_size,
                long_documents=self.long_documents,
            )
        )

    def first_tokens(self, count: int) -> torch.Tensor:
        """Return the first tokens of the training text in its order of epoch 0, (count,) or all; the same on every rank."""
        taken: list[np.ndarray] = []
        left = count
        for items in batched(self.source.documents("train"), ENCODE_BATCH_SIZE):
            is_text = isinstance(items[0], str)
            taken += encoded_documents(self.tokenizer, items, torch.get_num_threads()) if is_text else items
            left -= sum(map(len, taken[-len(items) :]))
            if left <= 0:
                break
        return torch.from_numpy(np.concatenate(taken)[:count].astype(np.int64))

    def val_batches(self) -> Iterator[Batch]:
        """Yield batches of whole validation documents."""
        texts = islice(self.source.documents("val"), self.val_docs)
        return document_batches(texts, self.tokenizer, self.sequence_len, self.rows)


class Replay(IterableDataset[Batch]):
    """A finite dataset that calls a function for a new iterator on every pass."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.make())

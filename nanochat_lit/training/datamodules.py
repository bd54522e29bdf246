"""Data for the Trainer: prepares everything a run needs, then gives batches."""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nanochat_lit.common.distributed import rank, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.chat_stream import ChatStream
from nanochat_lit.data.pretrain_stream import PretrainStream
from nanochat_lit.data.shards import check_source, conversations, documents
from nanochat_lit.data.sources import SourceLike
from nanochat_lit.evaluation.bpb import document_batches
from nanochat_lit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule
    from nanochat_lit.training.pretrain import PretrainModule

Batch = dict[str, torch.Tensor]


class LanguageDataModule(LightningDataModule):
    """What text and conversations share: where the tokenizer is, and loaders around streams."""

    def __init__(self, path: str, tokenizer: str | None, micro_batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if micro_batch_size < 1:
            raise UserError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
        self.path = path
        self.tokenizer_path = tokenizer
        self.micro_batch_size = micro_batch_size
        self.num_workers = num_workers
        self.seed = seed

    tokenizer: Tokenizer

    @property
    def module(self) -> "LanguageModule":
        """The module that these data train."""
        assert self.trainer is not None
        return cast("LanguageModule", self.trainer.lightning_module)

    @property
    def sequence_len(self) -> int:
        """Context of the model in training."""
        return self.module.config.sequence_len

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        assert self.trainer is not None
        return Path(self.trainer.default_root_dir)

    def setup(self, stage: str) -> None:
        base = self.module.start_from()
        path = self.tokenizer_path or self.run_dir / "tokenizer"
        self.tokenizer = base if base is not None and self.tokenizer_path is None else Tokenizer.load(path)

    def loader(self, stream: IterableDataset[Batch]) -> "DataLoader[Batch]":
        """A DataLoader that passes the stream's batches on."""
        return DataLoader(
            stream,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


class TextDataModule(LanguageDataModule):
    """Text for pretraining: a folder or file of .parquet, .jsonl or .txt.

    With several files the last one (by name) is for validation, with one its last hundredth.

    Args:
        path: File or folder.
        tokenizer: Folder of a tokenizer; None trains one on the training split into the run folder.
        vocab_size: Size of a tokenizer trained here: a number, or auto (by corpus and depth).
        micro_batch_size: Rows per device per forward.
        long_documents: split cuts documents longer than a row into pieces that each begin with BOS; crop loses the rest.
        buffer_size: Documents that best-fit packing chooses from.
        val_docs: Documents of the validation split to measure on.
        tokenizer_chars: Characters to train a tokenizer on, at most.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Order of files and row groups.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        vocab_size: int | Literal["auto"] = "auto",
        micro_batch_size: int = 8,
        long_documents: Literal["split", "crop"] = "split",
        buffer_size: int = 1000,
        val_docs: int = 100,
        tokenizer_chars: int = 2_000_000_000,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(path, tokenizer, micro_batch_size, num_workers, seed)
        self.vocab_size: int | Literal["auto"] = vocab_size
        self.long_documents: Literal["split", "crop"] = long_documents
        self.buffer_size = buffer_size
        self.val_docs = val_docs
        self.tokenizer_chars = tokenizer_chars

    def prepare_data(self) -> None:
        """Check every file, and train the tokenizer if the run has none."""
        assert self.trainer is not None
        module = cast("PretrainModule", self.module)
        module.check_batch(self.micro_batch_size, self.trainer.world_size)
        check_source(self.path)
        if self.tokenizer_path is not None:
            return
        if (self.run_dir / "tokenizer").exists():
            self._check_own_tokenizer()
            return
        print("training the tokenizer ...", file=sys.stderr)
        tokenizer = Tokenizer.train(
            documents(self.path, "train"), self.vocab_size, max_chars=self.tokenizer_chars, depth=module.depth
        )
        tokenizer.save(self.run_dir / "tokenizer")
        rule = "" if self.vocab_size != "auto" else f" (auto: by depth {module.depth} and the size of the corpus)"
        print(f"tokenizer: {tokenizer.vocab_size:,} tokens{rule}", file=sys.stderr)

    def _check_own_tokenizer(self) -> None:
        folder = self.run_dir / "tokenizer"
        found = Tokenizer.load(folder).vocab_size
        if self.vocab_size not in ("auto", found):
            raise UserError(
                f"{folder} is of an earlier run and has {found} tokens, vocab_size asks for {self.vocab_size}; "
                "give another run_dir, or delete that folder"
            )
        print(f"tokenizer: {folder}, {found:,} tokens", file=sys.stderr)

    def train_dataloader(self) -> "DataLoader[Batch]":
        return self.loader(
            PretrainStream(
                texts=self.path,
                tokenizer=self.tokenizer,
                sequence_len=self.sequence_len,
                micro_batch_size=self.micro_batch_size,
                seed=self.seed,
                rank=rank(),
                world_size=world_size(),
                buffer_size=self.buffer_size,
                long_documents=self.long_documents,
            )
        )

    def val_dataloader(self) -> "DataLoader[Batch]":
        def batches() -> Iterator[Batch]:
            texts = islice(documents(self.path, "val"), rank(), self.val_docs, world_size())
            yield from document_batches(texts, self.tokenizer, self.sequence_len, self.micro_batch_size)

        return DataLoader(Replay(batches), batch_size=None)

    def test_dataloader(self) -> "DataLoader[Batch]":
        return self.val_dataloader()


class ChatDataModule(LanguageDataModule):
    """Conversations for fine-tuning: a .jsonl file or a folder of them, `messages` in each row.

    Args:
        path: File or folder.
        tokenizer: Folder of a tokenizer; None takes that of the base export.
        micro_batch_size: Rows per device per forward.
        buffer_size: Conversations that best-fit packing chooses from.
        val_rows: Packed rows of the validation split to measure on, at most.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Order of the conversations.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        micro_batch_size: int = 8,
        buffer_size: int = 1000,
        val_rows: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(path, tokenizer, micro_batch_size, num_workers, seed)
        self.buffer_size = buffer_size
        self.val_rows = val_rows

    def prepare_data(self) -> None:
        """Check every file."""
        check_source(self.path, "messages")

    def stream(self, split: str, items: SourceLike | None = None, rank: int = 0, world_size: int = 1) -> ChatStream:
        """Packed conversations of a split; the train split is endless."""
        return ChatStream(
            conversations=self.path if items is None else items,
            tokenizer=self.tokenizer,
            sequence_len=self.sequence_len,
            micro_batch_size=self.micro_batch_size,
            split=split,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            buffer_size=self.buffer_size,
        )

    def epoch_tokens(self) -> int:
        """Tokens, padding included, of one pass over the training conversations."""
        once = self.stream("all", lambda: conversations(self.path, "train"))
        return sum(batch["inputs"].numel() for batch in once)

    def train_dataloader(self) -> "DataLoader[Batch]":
        return self.loader(self.stream("train", rank=rank(), world_size=world_size()))

    def val_dataloader(self) -> "DataLoader[Batch]":
        stream = self.stream("val", rank=rank(), world_size=world_size())
        num_batches = max(1, self.val_rows // self.micro_batch_size // world_size())
        return DataLoader(Replay(lambda: islice(stream, num_batches)), batch_size=None)

    def test_dataloader(self) -> "DataLoader[Batch]":
        return self.val_dataloader()


class Replay(IterableDataset[Batch]):
    """A finite stream made anew by a function on every pass."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.make())

"""DataModules of conversations for fine-tuning: files, and mixtures of tasks."""

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal

from nanochat_lit.common.distributed import rank, world_size
from nanochat_lit.data.loader import ResumableLoader
from nanochat_lit.data.shards import FileSource
from nanochat_lit.data.source import SplitSource
from nanochat_lit.data.stream import ChatStream, SourceLike
from nanochat_lit.tasks.base import Conversations, TaskMixture
from nanochat_lit.training.datamodules import Batch, LanguageDataModule

COUNTED_CONVERSATIONS = 20_000
"""Conversations to count the tokens of an epoch from; for longer epochs, an evenly spaced sample is extrapolated."""


class ChatDataModule(LanguageDataModule):
    """Conversations for fine-tuning: a .jsonl file or a folder of them, with `messages` in each record.

    OpenAI's format (including tool calls) and ShareGPT's are converted on reading; see `tokenizer.foreign_chat`.

    Args:
        path: File or folder. File names such as train, val and test determine the split. Otherwise the last file by
            name, or the last 1% of a single file, is for validation.
        tokenizer: Folder of a tokenizer; None uses that of the base export.
        micro_batch_size: Sequences per device per forward pass: a number, or auto (the most that fit the device's
            memory).
        buffer_size: Conversations that best-fit packing chooses from.
        val_rows: Maximum number of packed validation sequences to evaluate on.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Seed of the order of conversations.
        validation: Name of the validation file in the folder `path`; None decides by the file names.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        micro_batch_size: int | Literal["auto"] = 8,
        buffer_size: int = 1000,
        val_rows: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        validation: str | None = None,
    ) -> None:
        super().__init__(tokenizer, micro_batch_size, num_workers, seed)
        self.path = path
        self.validation = validation
        self.buffer_size = buffer_size
        self.val_rows = val_rows

    def prepare_data(self) -> None:
        """Check every file and print which are used for training."""
        source = self.files()
        source.check()
        print(f"data: {source.summary()}", file=sys.stderr)

    def files(self) -> FileSource:
        """Files of the path."""
        return FileSource(self.path, "messages", self.seed, self.validation)

    names: list[str] | None = None
    """Names of the data sources that records may have in "source"."""

    def source(self) -> SourceLike:
        """Source of the conversations."""
        return self.files()

    def stream(self, split: str, items: SourceLike | None = None, rank: int = 0, world_size: int = 1) -> ChatStream:
        """Return packed conversations of a split; the train split is endless."""
        return ChatStream(
            conversations=self.source() if items is None else items,
            tokenizer=self.tokenizer,
            sequence_len=self.sequence_len,
            micro_batch_size=self.rows,
            split=split,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            buffer_size=self.buffer_size,
            names=self.names,
        )

    def epoch_tokens(self) -> int:
        """Return the number of tokens, including padding, of one pass over the training conversations."""
        once = self.stream("all", lambda: self.files().documents("train"))
        return sum(batch["inputs"].numel() for batch in once)

    def train_dataloader(self) -> ResumableLoader:
        return self.loader(self.stream("train", rank=rank(), world_size=world_size()))

    def val_batches(self) -> Iterator[Batch]:
        """Yield batches of packed validation conversations."""
        return islice(iter(self.stream("val")), max(1, self.val_rows // self.rows))


class MixtureDataModule(ChatDataModule):
    """Mixes several sources, with repeats; losses and token shares are reported per source.

    Args:
        train: Training tasks by name; their conversations are mixed evenly.
        val: Validation tasks by name; a task with the same name as one in `train` should be another split of it.
        repeats: Passes over each source of `train` per epoch, by name. Default 1.
        options: Options of `ChatDataModule`.
    """

    def __init__(
        self,
        train: dict[str, Conversations],
        val: dict[str, Conversations],
        repeats: dict[str, int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(path="", seed=seed, validation=None, **options)
        self.train_mixture = TaskMixture(train, repeats, seed)
        self.val_mixture = TaskMixture(val, seed=seed)
        self.names = list(dict.fromkeys([*train, *val]))

    def prepare_data(self) -> None:
        """Do nothing; the tasks check their files when they are constructed."""

    def source(self) -> SplitSource:
        """Training and validation mixtures."""
        return SplitSource(self.train_mixture, self.val_mixture, self.seed)

    def epoch_tokens(self) -> int:
        """Return the number of tokens, including padding, of one pass; extrapolated from a sample of a long mixture."""
        stride = -(-len(self.train_mixture) // COUNTED_CONVERSATIONS)
        counted = range(0, len(self.train_mixture), stride)

        def conversations() -> Iterator[Mapping[str, Any]]:
            return (self.train_mixture[index] for index in counted)

        tokens = sum(batch["inputs"].numel() for batch in self.stream("all", conversations))
        return round(tokens * len(self.train_mixture) / len(counted))

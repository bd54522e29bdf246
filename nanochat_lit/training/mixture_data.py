"""DataModule that mixes conversations of several tasks for fine-tuning."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from nanochat_lit.data.source import SplitSource
from nanochat_lit.tasks.base import Conversations, TaskMixture
from nanochat_lit.training.datamodules import ChatDataModule

COUNTED_CONVERSATIONS = 20_000
"""Conversations to count the tokens of an epoch from; for longer epochs, an evenly spaced sample is extrapolated."""


class MixtureDataModule(ChatDataModule):
    """Mixes several sources, with repeats; losses and token shares are reported per source.

    Args:
        train: Training tasks by name; their conversations are mixed evenly.
        val: Validation tasks by name; a task with the same name as one in `train` should be another split of it.
        repeats: Passes over each source of `train` per epoch, by name. Default 1.
        tokenizer: Folder of a tokenizer; None uses that of the base export.
        micro_batch_size: Sequences per device per forward pass: a number, or auto (the most that fit the device's
            memory).
        buffer_size: Conversations that best-fit packing chooses from.
        val_rows: Maximum number of packed validation sequences to evaluate on.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Seed of the order of conversations.
    """

    def __init__(
        self,
        train: dict[str, Conversations],
        val: dict[str, Conversations],
        repeats: dict[str, int] | None = None,
        tokenizer: str | None = None,
        micro_batch_size: int | Literal["auto"] = 8,
        buffer_size: int = 1000,
        val_rows: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__("", tokenizer, micro_batch_size, buffer_size, val_rows, num_workers, seed)
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

"""Conversations of several tasks in one stream, for fine-tuning."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from nanochat_lit.data.sources import SplitSource
from nanochat_lit.tasks.base import Conversations, TaskMixture
from nanochat_lit.training.datamodules import ChatDataModule

COUNTED_CONVERSATIONS = 20_000
"""The tokens of an epoch are counted; of longer ones this many conversations, evenly spread; the rest is extrapolated."""


class MixtureDataModule(ChatDataModule):
    """Several sources, each as often as it is repeated; losses and token shares are reported by source.

    Args:
        train: Tasks to learn from, by name; their conversations are mixed evenly.
        val: Tasks to measure on, by name; those of the same name as a source of `train` should be other splits of it.
        repeats: How often each source of `train` is read in an epoch; those that are not named are read once.
        tokenizer: Folder of a tokenizer; None takes that of the base export.
        micro_batch_size: Rows per device per forward: a number, or auto (the most that fit the device's memory).
        buffer_size: Conversations that best-fit packing chooses from.
        val_rows: Packed rows of the validation tasks to measure on, at most.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Order of the conversations.
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
        """Nothing: the tasks have looked at their files when they were made."""

    def source(self) -> SplitSource:
        """The two mixtures."""
        return SplitSource(self.train_mixture, self.val_mixture, self.seed)

    def epoch_tokens(self) -> int:
        """Tokens, padding included, of one pass over the mixture; inferred from a part of it if it is long."""
        stride = -(-len(self.train_mixture) // COUNTED_CONVERSATIONS)
        counted = range(0, len(self.train_mixture), stride)

        def conversations() -> Iterator[Mapping[str, Any]]:
            return (self.train_mixture[index] for index in counted)

        tokens = sum(batch["inputs"].numel() for batch in self.stream("all", conversations))
        return round(tokens * len(self.train_mixture) / len(counted))

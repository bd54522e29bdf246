"""A loader of batches that the model in training generates."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from nanochat_lit.data.loader import ENDLESS

Batch = dict[str, Tensor]


class RolloutLoader(Iterator[Batch]):
    """An endless, resumable loader of micro-batches of rollouts.

    Rollouts are generated on request of the first micro-batch of a step, with the weights that the step will update.

    Args:
        roll_out: Returns the rollout batch of a given number: tensors with equal first dimensions.
        micro_batch_size: Sequences per batch; must divide the size of a rollout batch.
        updates: Optimizer steps per rollout batch.

    Attributes:
        asked_at_s: Time of the last request for a batch, from `time.perf_counter`.
        waited_s: Total time spent generating batches, seconds.
    """

    def __init__(self, roll_out: Callable[[int], Batch], micro_batch_size: int, updates: int = 1) -> None:
        self.roll_out = roll_out
        self.micro_batch_size = micro_batch_size
        self.updates = updates
        self.asked_at_s = self.waited_s = 0.0
        self._number = 0
        """Number of the next rollout batch."""
        self._rows: Batch | None = None
        """Rollout batch in use."""
        self._num_given = 0
        """Micro-batches already returned from it."""

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> "RolloutLoader":
        return self

    def __next__(self) -> Batch:
        self.asked_at_s = time.perf_counter()
        if self._rows is None:
            self._rows, self._num_given = self.roll_out(self._number), 0
            self._number += 1
        rows = self._rows
        batches_per_update = len(rows["inputs"]) // self.micro_batch_size
        start = self._num_given % batches_per_update * self.micro_batch_size
        batch = {name: tensor[start : start + self.micro_batch_size] for name, tensor in rows.items()}
        self._num_given += 1
        if self._num_given == batches_per_update * self.updates:
            self._rows = None
        self.waited_s += time.perf_counter() - self.asked_at_s
        return batch

    def position(self) -> dict[str, Any]:
        """Return the position after the last returned batch, for a checkpoint; includes the rollouts in use."""
        rows = None if self._rows is None else {name: tensor.cpu() for name, tensor in self._rows.items()}
        return {"number": self._number, "rows": rows, "num_given": self._num_given}

    def seek(self, position: dict[str, Any]) -> None:
        """Resume from a position; without stored rollouts, at the next rollout batch."""
        self._number, self._rows, self._num_given = position["number"], position["rows"], position["num_given"]

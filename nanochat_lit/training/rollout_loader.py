"""Batches that the model in training writes itself: the questions are asked anew for each step."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from nanochat_lit.data.loader import ENDLESS

Batch = dict[str, Tensor]


class RolloutLoader(Iterator[Batch]):
    """An endless loader of micro-batches that knows its place.

    Nothing is read ahead: rollouts are made when the first micro-batch of their step is asked for, by the weights that
    the step will change.

    Args:
        roll_out: Makes the rows of the rollouts with this number: tensors that all have a place for each row.
        micro_batch_size: Rows of a batch; the rows must divide by it.
        updates: Optimizer steps taken on the same rollouts.

    Attributes:
        asked_at_s: When the last batch was asked for, by `time.perf_counter`.
        waited_s: Seconds that all batches so far took to come: the time of the rollouts.
    """

    def __init__(self, roll_out: Callable[[int], Batch], micro_batch_size: int, updates: int = 1) -> None:
        self.roll_out = roll_out
        self.micro_batch_size = micro_batch_size
        self.updates = updates
        self.asked_at_s = self.waited_s = 0.0
        self._number = 0
        """Of the next rollouts."""
        self._rows: Batch | None = None
        """Rollouts that are not used up."""
        self._num_given = 0
        """Micro-batches of them that were given out."""

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
        """The place after the last batch given out, for a checkpoint; rollouts in use are part of it."""
        rows = None if self._rows is None else {name: tensor.cpu() for name, tensor in self._rows.items()}
        return {"number": self._number, "rows": rows, "num_given": self._num_given}

    def seek(self, position: dict[str, Any]) -> None:
        """Continue from a place; without rows, at the next rollouts."""
        self._number, self._rows, self._num_given = position["number"], position["rows"], position["num_given"]

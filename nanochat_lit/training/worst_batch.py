"""Tracks the batch with the highest loss without synchronizing the device."""

import math
from typing import Any

import torch
from torch import Tensor


class WorstBatch:
    """Keeps the batch with the highest loss since `clear`; NaN counts as infinite, and ties keep the first.

    The selection runs on the device: adding a batch launches a few small kernels and no transfer.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._inputs: Tensor | None = None
        self._step: Any = 0

    def add(self, loss: Tensor, inputs: Tensor, step: int) -> None:
        """Consider a batch.

        Args:
            loss: Scalar, nats.
            inputs: (B, T) token ids; the same shape for all batches.
            step: Step of the batch.
        """
        loss = loss.detach().float().nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
        if self._loss is None or self._inputs is None:
            self._loss, self._inputs, self._step = loss, inputs, torch.full_like(loss, step, dtype=torch.int64)
            return
        is_worse = loss > self._loss
        self._inputs = torch.where(is_worse, inputs, self._inputs)
        self._step = torch.where(is_worse, step, self._step)
        self._loss = torch.maximum(loss, self._loss)

    @property
    def loss(self) -> Tensor | None:
        """Highest loss, a scalar on the device, infinite for NaN; None before the first batch."""
        return self._loss

    def fetch(self) -> tuple[float, int, list[list[int]]]:
        """Return loss, step and sequences of token ids on the host; synchronizes."""
        assert self._loss is not None
        assert self._inputs is not None
        return float(self._loss), int(self._step), self._inputs.tolist()

    def clear(self) -> None:
        """Discard the batch."""
        self._loss = self._inputs = None

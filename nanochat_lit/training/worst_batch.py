"""The batch with the highest loss, kept without ever waiting for the device."""

import math
from typing import Any

import torch
from torch import Tensor


class WorstBatch:
    """Remembers of all batches since `clear` the one with the highest loss; NaN counts as infinite, the first one stays.

    Everything is chosen by tensors on the device, so adding a batch launches a few small kernels and no transfer.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._inputs: Tensor | None = None
        self._step: Any = 0

    def add(self, loss: Tensor, inputs: Tensor, step: int) -> None:
        """Consider a batch.

        Args:
            loss: Scalar, nats.
            inputs: (B, T) token ids, of one shape for all batches.
            step: The step it belongs to.
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
        """Scalar on the device, infinite for NaN; None before the first batch."""
        return self._loss

    def fetch(self) -> tuple[float, int, list[list[int]]]:
        """Loss, step and rows of token ids, on the host; waits for the device."""
        assert self._loss is not None
        assert self._inputs is not None
        return float(self._loss), int(self._step), self._inputs.tolist()

    def clear(self) -> None:
        """Forget it."""
        self._loss = self._inputs = None

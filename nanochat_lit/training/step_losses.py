"""Keeps losses on the device until they are read, to avoid synchronization."""

import torch
from torch import Tensor


class StepLosses:
    """Losses of the current step's micro-batches, and mean losses of the steps since the last `pop`."""

    def __init__(self) -> None:
        self._micro_batches: list[Tensor] = []
        self._steps: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Add the scalar loss of a micro-batch."""
        self._micro_batches.append(loss.detach())

    @property
    def latest(self) -> Tensor:
        """Return the loss of the last micro-batch of the current step."""
        return self._micro_batches[-1]

    def end_step(self) -> None:
        """Combine the micro-batches so far into one step; call it before the optimizer steps."""
        self._steps.append(torch.stack(self._micro_batches).mean())
        self._micro_batches.clear()

    def pop(self) -> Tensor:
        """Return the mean losses of the steps since the last call, (steps,)."""
        losses = torch.stack(self._steps)
        self._steps.clear()
        return losses

    def pending(self) -> Tensor | None:
        """Return the unread step losses on the CPU, for checkpoints between steps."""
        return torch.stack(self._steps).cpu() if self._steps else None

    def restore(self, pending: Tensor | None, device: torch.device) -> None:
        """Restore what `pending` returned."""
        self._micro_batches.clear()
        self._steps = [] if pending is None else list(pending.to(device).unbind())

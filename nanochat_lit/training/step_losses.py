"""The losses of a run until they are looked at: on the device that computed them, to avoid a synchronization."""

import torch
from torch import Tensor


class StepLosses:
    """Losses of the micro-batches of the open step, and mean losses of the steps since the last `pop`."""

    def __init__(self) -> None:
        self._micro_batches: list[Tensor] = []
        self._steps: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Of a micro-batch, a scalar."""
        self._micro_batches.append(loss.detach())

    @property
    def latest(self) -> Tensor:
        """Of the last micro-batch of the open step."""
        return self._micro_batches[-1]

    def end_step(self) -> None:
        """The optimizer is about to step: the micro-batches so far are one step's."""
        self._steps.append(torch.stack(self._micro_batches).mean())
        self._micro_batches.clear()

    def pop(self) -> Tensor:
        """Mean losses of the steps since the last call, (steps,)."""
        losses = torch.stack(self._steps)
        self._steps.clear()
        return losses

    def pending(self) -> Tensor | None:
        """The steps not yet read, on the CPU: between steps there is nothing else to save."""
        return torch.stack(self._steps).cpu() if self._steps else None

    def restore(self, pending: Tensor | None, device: torch.device) -> None:
        """Take up what `pending` gave."""
        self._micro_batches.clear()
        self._steps = [] if pending is None else list(pending.to(device).unbind())

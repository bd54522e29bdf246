"""An exponential moving average that is right from its first value on."""

import math

SMOOTHING = 0.95
"""Share of the old average that stays with every step: the average is over some 20 steps."""


class SmoothedLoss:
    """Moving average of losses, without the pull towards zero that it begins with (Kingma and Ba 2015. https://arxiv.org/abs/1412.6980)."""

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        self.smoothing = smoothing
        self._sum = 0.0
        self._weight = 0.0

    def add(self, loss: float) -> None:
        """Take in the next loss."""
        self._sum += (1 - self.smoothing) * (loss - self._sum)
        self._weight += (1 - self.smoothing) * (1 - self._weight)

    @property
    def value(self) -> float:
        """The average; NaN before the first loss."""
        return self._sum / self._weight if self._weight else math.nan

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs for the average to go on."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self._sum, self._weight = state["sum"], state["weight"]

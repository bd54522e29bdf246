"""An exponential moving average with bias correction."""

import math

SMOOTHING = 0.95
"""Weight of the old average per step; corresponds to about 20 steps."""


class SmoothedLoss:
    """Bias-corrected moving average of losses (Kingma and Ba 2015. https://arxiv.org/abs/1412.6980)."""

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        self.smoothing = smoothing
        self._sum = 0.0
        self._weight = 0.0

    def add(self, loss: float) -> None:
        """Add a loss."""
        self._sum += (1 - self.smoothing) * (loss - self._sum)
        self._weight += (1 - self.smoothing) * (1 - self._weight)

    @property
    def value(self) -> float:
        """Current average; NaN before the first loss."""
        return self._sum / self._weight if self._weight else math.nan

    def state_dict(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state that `state_dict` returned."""
        self._sum, self._weight = state["sum"], state["weight"]

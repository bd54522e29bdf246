"""Distinguishes an exploded loss from a spike.

A spike lasts a few steps, caused by an unusual batch, and recovers by itself. An exploded loss stays far above its
earlier values.
"""

import math
from collections.abc import Sequence
from typing import Any

from nanochat_lit.training.smoothed_loss import SmoothedLoss

PATIENCE = 10
"""Number of consecutive high losses."""


class Explosion:
    """Detects ten consecutive steps whose loss exceeds the average of the earlier steps by a margin.

    High losses are excluded from the average, so that a slow climb does not raise it.

    Args:
        margin: Nats; 3 corresponds to tokens becoming 20 times less likely. 0 disables detection.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.num_high = 0
        self._smoothed = SmoothedLoss()

    @property
    def usual(self) -> float:
        """Average of the losses that are not high."""
        return self._smoothed.value

    def found_in(self, losses: Sequence[float]) -> bool:
        """Add the losses of the next steps; return whether the last one belongs to an explosion."""
        for loss in losses:
            usual = self.usual
            if self.margin > 0 and not math.isnan(usual) and not loss <= usual + self.margin:
                self.num_high += 1
            else:
                self.num_high = 0
                self._smoothed.add(loss)
        return self.num_high >= PATIENCE

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"num_high": self.num_high, "smoothed": self._smoothed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.num_high = state["num_high"]
        self._smoothed.load_state_dict(state["smoothed"])

"""When a loss has exploded, and when it is only a spike.

Losses jump for a step or a few, by one odd batch, and come back by themselves; runs should survive that. What does not come
back stays far above where the loss was.
"""

import math
from collections.abc import Sequence
from typing import Any

from nanochat_lit.training.smoothed_loss import SmoothedLoss

PATIENCE = 10
"""Steps in a row that must be high."""


class Explosion:
    """Finds an explosion: ten steps in a row whose loss exceeds the average of the steps before by a margin.

    High steps do not enter the average, so a slow climb cannot pull it along.

    Args:
        margin: Nats. With 3 the tokens must have become twenty times less likely than they were. 0 finds nothing.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.num_high = 0
        self._smoothed = SmoothedLoss()

    @property
    def usual(self) -> float:
        """Average of the steps that are not high."""
        return self._smoothed.value

    def found_in(self, losses: Sequence[float]) -> bool:
        """Take in the losses of the next steps; whether the last of them lies in an explosion."""
        for loss in losses:
            usual = self.usual
            if self.margin > 0 and not math.isnan(usual) and not loss <= usual + self.margin:
                self.num_high += 1
            else:
                self.num_high = 0
                self._smoothed.add(loss)
        return self.num_high >= PATIENCE

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"num_high": self.num_high, "smoothed": self._smoothed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.num_high = state["num_high"]
        self._smoothed.load_state_dict(state["smoothed"])

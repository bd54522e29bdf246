"""How long steps take and how much of that is waiting for data: figures of the steps since the last log row.

Times are moments of one clock in seconds, given by the caller. On CUDA the host runs ahead of the device between two log
rows: there a window's sum is right, and how it is spread over its steps is not.
"""

import math
from dataclasses import dataclass
from statistics import median

RECENT_STEPS = 100
"""Steps that percentiles are taken over, so that they mean something when every step is logged."""


@dataclass(frozen=True, kw_only=True)
class WindowTimes:
    """Figures of a window of steps."""

    num_steps: int
    """Steps since the last window."""
    seconds: float
    """Time they took, without what lies between steps: validation, checkpoints, logging."""
    data_wait: float
    """Share of it that was spent waiting for batches."""
    p50_s: float
    """Median time of a recent step."""
    p95_s: float
    """Time that 95 of 100 recent steps do not exceed."""


class StepTimes:
    """Collects the times of steps.

    A step begins when its first batch is asked for and ends after the optimizer has stepped. What happens between the end
    of one and the beginning of the next is not training and is left out.
    """

    def __init__(self) -> None:
        self._step_s: list[float] = []
        self._begin_s: float | None = None
        self._waited_s = 0.0
        self._window_from = self._recent_from = 0
        self._window_wait_s = 0.0

    def begin(self, at_s: float) -> None:
        """A step begins, unless one is open already: later micro-batches do not begin another."""
        if self._begin_s is None:
            self._begin_s = at_s

    def end(self, at_s: float, waited_s: float) -> None:
        """The open step ends.

        Args:
            at_s: Now.
            waited_s: Time spent waiting for batches so far, since the first step.
        """
        assert self._begin_s is not None, "a step ends that has not begun"
        self._step_s.append(at_s - self._begin_s)
        self._window_wait_s += waited_s - self._waited_s
        self._waited_s = waited_s
        self._begin_s = None

    def close_window(self) -> WindowTimes:
        """Figures of the steps since the last call, of which there must be one.

        The first window is left out of later percentiles: its first step compiles and warms up.
        """
        window = self._step_s[self._window_from :]
        assert window, "a window closes that has no step"
        recent = self._step_s[max(self._recent_from, len(self._step_s) - RECENT_STEPS) :]
        seconds = math.fsum(window)
        times = WindowTimes(
            num_steps=len(window),
            seconds=seconds,
            data_wait=self._window_wait_s / seconds,
            p50_s=percentile(recent, 0.5),
            p95_s=percentile(recent, 0.95),
        )
        if self._window_from == 0:
            self._recent_from = len(window)
        self._window_from, self._window_wait_s = len(self._step_s), 0.0
        return times

    def median_s(self) -> float:
        """Median time of all steps but the first, which compiles; NaN without a step."""
        return median(self._step_s[1:] or self._step_s or [math.nan])

    def __len__(self) -> int:
        return len(self._step_s)


def percentile(values: list[float], share: float) -> float:
    """The smallest of the values that a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]

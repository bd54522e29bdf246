"""Step durations and data waiting times since the last logged row.

The caller passes timestamps of one clock in seconds. On CUDA the host runs ahead of the device between logged rows: the
total of a window is exact, its distribution over the steps is not.
"""

import math
from dataclasses import dataclass
from statistics import median

RECENT_STEPS = 100
"""Number of recent steps that percentiles are computed over."""


@dataclass(frozen=True, kw_only=True)
class WindowTimes:
    """Timing of a window of steps."""

    num_steps: int
    """Number of steps in the window."""
    seconds: float
    """Duration of the steps in seconds, excluding validation, checkpoints and logging between steps."""
    data_wait: float
    """Fraction of the duration spent waiting for batches."""
    p50_s: float
    """Median duration of recent steps, seconds."""
    p95_s: float
    """95th percentile of the duration of recent steps, seconds."""


class StepTimes:
    """Collects step durations.

    A step begins with the request for its first batch and ends after the optimizer step. Time between steps is
    excluded.
    """

    def __init__(self) -> None:
        self._step_s: list[float] = []
        self._begin_s: float | None = None
        self._waited_s = 0.0
        self._window_from = self._recent_from = 0
        self._window_wait_s = 0.0

    def begin(self, at_s: float) -> None:
        """Start a step, unless one is open (later micro-batches of the same step)."""
        if self._begin_s is None:
            self._begin_s = at_s

    def end(self, at_s: float, waited_s: float) -> None:
        """End the open step.

        Args:
            at_s: Current time, seconds.
            waited_s: Total time spent waiting for batches since the first step, seconds.
        """
        assert self._begin_s is not None, "end() without begin()"
        self._step_s.append(at_s - self._begin_s)
        self._window_wait_s += waited_s - self._waited_s
        self._waited_s = waited_s
        self._begin_s = None

    def close_window(self) -> WindowTimes:
        """Return the timing of the steps since the last call; requires at least one step.

        The first window is excluded from later percentiles, because its first step compiles.
        """
        window = self._step_s[self._window_from :]
        assert window, "the window has no steps"
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
        """Return the median duration of all steps except the first, which compiles; NaN without steps."""
        return median(self._step_s[1:] or self._step_s or [math.nan])

    def __len__(self) -> int:
        return len(self._step_s)


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that is not exceeded by the given fraction of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]

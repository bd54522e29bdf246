"""Scaling laws fitted to finished runs, as pure functions.

The method is approach 2 of Hoffmann et al. 2022 (isoFLOP profiles). For each compute budget, the minimum of a parabola
of the loss over the logarithm of the model size is the optimal size; likewise for the number of tokens. Straight lines
through these optima in log-log coordinates are the power laws.

Reference:
    Hoffmann et al. 2022, Training Compute-Optimal Large Language Models. https://arxiv.org/abs/2203.15556
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_POINTS = 3
"""Number of coefficients of a parabola."""


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """y = lowest + curvature * (log10 x - log10 best) ** 2, by least squares."""

    best: float
    """Location of the minimum."""
    lowest: float
    """Value at the minimum."""
    curvature: float
    """Positive if there is a minimum."""
    is_inside: bool
    """Whether the minimum lies within the range of the fitted points; otherwise it is an extrapolation."""
    error: float = 0.0
    """Root mean square residual; the approximation by a parabola holds only near the minimum."""

    def __call__(self, x: float) -> float:
        """Return the value at x."""
        return self.lowest + self.curvature * (math.log10(x) - math.log10(self.best)) ** 2


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """y = offset + factor * x ** exponent."""

    exponent: float
    """Slope of the line in log-log coordinates."""
    factor: float
    """Value at x = 1, without the offset."""
    offset: float = 0.0
    """Limit for large x."""
    exponent_error: float | None = None
    """Standard error of the exponent from the residuals; None with fewer than three points."""

    def __call__(self, x: float) -> float:
        """Return the value at x."""
        return self.offset + self.factor * x**self.exponent


def fit_parabola(places: Sequence[float], values: Sequence[float]) -> Parabola | None:
    """Fit a parabola by least squares over log10 of the locations.

    Args:
        places: Positive locations; at least three different ones are needed.
        values: One value per location.

    Returns:
        None with too few locations, or if the parabola has no minimum.
    """
    if len(set(places)) < MIN_POINTS:
        return None
    logs = np.log10(np.asarray(places, dtype=np.float64))
    middle = float(logs.mean())  # centering keeps the sums of powers well conditioned
    curvature, slope, level = np.polyfit(logs - middle, np.asarray(values, dtype=np.float64), 2)
    if curvature <= 0:
        return None
    shift = -slope / (2 * curvature)
    residuals = np.polyval((curvature, slope, level), logs - middle) - np.asarray(values)
    return Parabola(
        best=float(10 ** (middle + shift)),
        lowest=float(level - slope**2 / (4 * curvature)),
        curvature=float(curvature),
        is_inside=bool(logs.min() <= middle + shift <= logs.max()),
        error=float(np.sqrt((residuals**2).mean())),
    )


def fit_power_law(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw | None:
    """Fit a straight line in log-log coordinates by least squares.

    Args:
        xs: Positive values.
        ys: Positive values, one per x.

    Returns:
        None with fewer than two different xs.
    """
    if len(set(xs)) < 2:
        return None
    log_x, log_y = np.log(np.asarray(xs, dtype=np.float64)), np.log(np.asarray(ys, dtype=np.float64))
    middle = log_x.mean()
    spread = float(((log_x - middle) ** 2).sum())
    exponent = float(((log_x - middle) * log_y).sum() / spread)
    level = float(log_y.mean() - exponent * middle)
    residuals = log_y - (level + exponent * log_x)
    degrees = len(xs) - 2
    error = math.sqrt(float((residuals**2).sum()) / degrees / spread) if degrees > 0 else None
    return PowerLaw(exponent=exponent, factor=math.exp(level), exponent_error=error)


def fit_saturating_power_law(xs: Sequence[float], ys: Sequence[float], num_offsets: int = 2000) -> PowerLaw | None:
    """Fit offset + factor * x ** exponent: a search over offsets, and a line through log(y - offset).

    Offsets are tried from 0 to just below the lowest y; the one with the smallest squared error of y (not of its
    logarithm) is selected.

    Args:
        xs: Positive values.
        ys: Positive values that decrease with x.
        num_offsets: Number of offsets to try.

    Returns:
        None with fewer than four points, as three parameters fit three points exactly.
    """
    if len(set(xs)) < 4:
        return None
    values = np.asarray(ys, dtype=np.float64)
    best: tuple[float, PowerLaw] | None = None
    for offset in np.linspace(0.0, float(values.min()), num_offsets, endpoint=False):
        line = fit_power_law(xs, list(values - offset))
        assert line is not None
        law = PowerLaw(
            exponent=line.exponent, factor=line.factor, offset=float(offset), exponent_error=line.exponent_error
        )
        error = sum((law(x) - y) ** 2 for x, y in zip(xs, ys, strict=True))
        if best is None or error < best[0]:
            best = (error, law)
    return None if best is None else best[1]

"""Statistics as pure functions: confidence intervals, centered accuracies, pass@k, and fits of scaling laws.

The fits follow approach 2 of Hoffmann et al. 2022 (isoFLOP profiles). For each compute budget, the minimum of a parabola
of the loss over the logarithm of the model size is the optimal size; likewise for the number of tokens. Straight lines
through these optima in log-log coordinates are the power laws.

Reference:
    Hoffmann et al. 2022, Training Compute-Optimal Large Language Models. https://arxiv.org/abs/2203.15556
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95


class PassRates(Metric):
    """Accuracy of greedy answers, and pass@1 and pass@k of sampled answers, over all ranks.

    Counts are integers, so the result does not depend on the number of ranks.

    Args:
        num_samples: Sampled answers per question; 0 for none.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    num_right: Tensor
    num_questions: Tensor
    by_right_samples: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        for name in ("num_right", "num_questions"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("by_right_samples", torch.zeros(num_samples + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, is_right: bool, num_right_samples: int) -> None:
        """Add a question: whether its greedy answer, and how many of its sampled answers, are correct."""
        self.num_questions += 1
        self.num_right += int(is_right)
        self.by_right_samples[num_right_samples] += 1

    def compute(self) -> dict[str, float]:
        """Return accuracy and, with samples, pass@1 and pass@k for k samples, each from 0 to 1."""
        total, k = int(self.num_questions), self.num_samples
        if total == 0:
            return {}
        figures = {"accuracy": int(self.num_right) / total}
        counts = list(enumerate(self.by_right_samples.tolist()))
        for n in sorted({1, k} if k else ()):
            figures[f"pass@{n}"] = sum(count * pass_at_k([right], k, n) for right, count in counts) / total
        return figures


def centered(accuracy: float, baseline: float) -> float:
    """Rescale an accuracy so that random guessing is 0 and perfection 1."""
    return (accuracy - baseline) / (1.0 - baseline)


def resampled_accuracies(num_correct: int, num_examples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the accuracies of bootstrap samples of the examples, (NUM_RESAMPLES,) float64.

    The number of correct answers in a sample with replacement is binomial. If all or no answers are correct, the
    samples do not vary and are not informative.
    """
    return rng.binomial(num_examples, num_correct / num_examples, NUM_RESAMPLES) / num_examples


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the lower and upper bound of the central interval of bootstrap samples at level CONFIDENCE."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(samples, (tail, 1.0 - tail))
    return float(low), float(high)


def pass_at_k(num_correct: Sequence[int], num_samples: int, k: int) -> float:
    """Return the unbiased estimate of the fraction of questions that at least one of k samples solves, from their correct samples.

    Reference:
        Chen et al. 2021, Evaluating Large Language Models Trained on Code. https://arxiv.org/abs/2107.03374
    """
    assert 1 <= k <= num_samples, f"pass@{k} of {num_samples} samples"
    total = math.comb(num_samples, k)
    return sum(1.0 - math.comb(num_samples - right, k) / total for right in num_correct) / len(num_correct)


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of an accuracy; unlike a bootstrap it has a width if all answers are correct.

    Reference:
        Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference. https://doi.org/10.2307/2276774
    """
    z, share = 1.959964, num_correct / num_examples
    center = share + z * z / (2 * num_examples)
    spread = z * math.sqrt(share * (1 - share) / num_examples + z * z / (4 * num_examples**2))
    scale = 1 + z * z / num_examples
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Return the mean and its interval at level CONFIDENCE by the t distribution; None without values, or without a spread."""
    if len(values) < 2:
        return (values[0] if values else None), None, None
    degrees = len(values) - 1
    # P(|T| < t) = integral of cos^(degrees - 1) up to atan(t / sqrt(degrees)), over that up to a right angle
    angles = np.linspace(0.0, math.pi / 2, 100_001)
    heights = np.cos(angles) ** (degrees - 1)
    shares = np.concatenate(([0.0], np.cumsum(heights[1:] + heights[:-1])))
    quantile = math.sqrt(degrees) * math.tan(np.interp(CONFIDENCE, shares / shares[-1], angles))
    mean, half = float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


MIN_POINTS = 3
"""Number of coefficients of a parabola."""


class Parabola(NamedTuple):
    """y = lowest + curvature * (log10 x - log10 best) ** 2, by least squares."""

    best: float  # location of the minimum
    lowest: float  # value at the minimum
    curvature: float  # positive if there is a minimum
    is_inside: bool  # whether the minimum lies within the range of the fitted points; otherwise it is an extrapolation
    error: float = 0.0  # root mean square residual; the approximation by a parabola holds only near the minimum

    def __call__(self, x: float) -> float:
        """Return the value at x."""
        return self.lowest + self.curvature * (math.log10(x) - math.log10(self.best)) ** 2


class PowerLaw(NamedTuple):
    """y = offset + factor * x ** exponent."""

    exponent: float  # slope of the line in log-log coordinates
    factor: float  # value at x = 1, without the offset
    offset: float = 0.0  # limit for large x
    exponent_error: float | None = None  # its standard error; None with fewer than three points

    def __call__(self, x: float) -> float:
        """Return the value at x."""
        return self.offset + self.factor * x**self.exponent


def fit_parabola(places: Sequence[float], values: Sequence[float]) -> Parabola | None:
    """Fit a parabola over log10 of the locations; None with fewer than three of them, or without a minimum."""
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
    """Fit a straight line in log-log coordinates by least squares; None with fewer than two different xs."""
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
    logarithm) is selected. None with fewer than four points, as three parameters fit three points exactly.
    """
    if len(set(xs)) < 4:
        return None
    values = np.asarray(ys, dtype=np.float64)
    laws = []
    for offset in np.linspace(0.0, float(values.min()), num_offsets, endpoint=False):
        line = fit_power_law(xs, list(values - offset))
        assert line is not None
        laws.append(line._replace(offset=float(offset)))
    return min(laws, key=lambda law: sum((law(x) - y) ** 2 for x, y in zip(xs, ys, strict=True)))

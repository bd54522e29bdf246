"""Confidence intervals and centered accuracies, as pure functions."""

import math
from collections.abc import Sequence

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
        """Add a question.

        Args:
            is_right: Whether the greedy answer is correct.
            num_right_samples: Number of correct sampled answers.
        """
        self.num_questions += 1
        self.num_right += int(is_right)
        self.by_right_samples[num_right_samples] += 1

    def compute(self) -> dict[str, float]:
        """Return accuracy and, with samples, pass@1 and pass@k for k samples, each from 0 to 1."""
        total, k = int(self.num_questions), self.num_samples
        if total == 0:
            return {}
        figures = {"accuracy": int(self.num_right) / total}
        if k:
            counts = self.by_right_samples.tolist()
            tries = sorted({1, k})
            each = {
                n: sum(count * pass_at_k([right], k, n) for right, count in enumerate(counts)) / total for n in tries
            }
            figures |= {f"pass@{n}": value for n, value in each.items()}
        return figures


def centered(accuracy: float, baseline: float) -> float:
    """Rescale an accuracy so that random guessing is 0 and perfection 1.

    Args:
        accuracy: Fraction of correct answers.
        baseline: Accuracy of random guessing, less than 1.
    """
    return (accuracy - baseline) / (1.0 - baseline)


def resampled_accuracies(num_correct: int, num_examples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the accuracies of NUM_RESAMPLES bootstrap samples of the examples.

    The number of correct answers in a sample with replacement is binomial. If all or no answers are correct, the
    samples do not vary and are not informative.

    Args:
        num_correct: Number of correct answers.
        num_examples: Number of answers, at least 1.
        rng: Random generator.

    Returns:
        (NUM_RESAMPLES,) float64.
    """
    return rng.binomial(num_examples, num_correct / num_examples, NUM_RESAMPLES) / num_examples


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the central interval of bootstrap samples at level CONFIDENCE.

    Args:
        samples: (N,) values of a statistic.

    Returns:
        Lower and upper bound.
    """
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(samples, (tail, 1.0 - tail))
    return float(low), float(high)


def pass_at_k(num_correct: Sequence[int], num_samples: int, k: int) -> float:
    """Return the unbiased estimate of the fraction of questions that at least one of k samples solves.

    Args:
        num_correct: Correct samples per question.
        num_samples: Samples per question.
        k: At most num_samples.

    Reference:
        Chen et al. 2021, Evaluating Large Language Models Trained on Code. https://arxiv.org/abs/2107.03374
    """
    assert 1 <= k <= num_samples, f"pass@{k} of {num_samples} samples"
    total = math.comb(num_samples, k)
    return sum(1.0 - math.comb(num_samples - right, k) / total for right in num_correct) / len(num_correct)


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of an accuracy; unlike a bootstrap it has a width if all answers are correct.

    Args:
        num_correct: Number of correct answers.
        num_examples: Number of answers, at least 1.

    Reference:
        Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference. https://doi.org/10.2307/2276774
    """
    z, share = 1.959964, num_correct / num_examples
    center = share + z * z / (2 * num_examples)
    spread = z * math.sqrt(share * (1 - share) / num_examples + z * z / (4 * num_examples**2))
    scale = 1 + z * z / num_examples
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)

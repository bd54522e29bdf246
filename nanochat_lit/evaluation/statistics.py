"""How sure a measured accuracy is, and what it is worth above chance. Pure functions."""

import math
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95


def centered(accuracy: float, baseline: float) -> float:
    """Accuracy on a scale where chance is 0 and perfection 1.

    Args:
        accuracy: Share of right answers.
        baseline: What guessing gets, below 1.
    """
    return (accuracy - baseline) / (1.0 - baseline)


def resampled_accuracies(num_correct: int, num_examples: int, rng: np.random.Generator) -> np.ndarray:
    """Accuracies of NUM_RESAMPLES bootstrap samples of the examples.

    Drawing n of n answers with replacement and counting the right ones is a binomial draw, so nothing has to be shuffled.
    With all or no answers right, the samples do not vary (and say nothing about the uncertainty).

    Args:
        num_correct: Right answers.
        num_examples: All answers, at least 1.
        rng: Source of randomness.

    Returns:
        (NUM_RESAMPLES,) float64.
    """
    return rng.binomial(num_examples, num_correct / num_examples, NUM_RESAMPLES) / num_examples


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle CONFIDENCE share of bootstrap samples.

    Args:
        samples: (N,) values of a statistic.

    Returns:
        Its lower and upper end.
    """
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(samples, (tail, 1.0 - tail))
    return float(low), float(high)


def pass_at_k(num_correct: Sequence[int], num_samples: int, k: int) -> float:
    """Share of questions that at least one of k samples solves, estimated without bias from num_samples each.

    Args:
        num_correct: Right samples of each question.
        num_samples: Samples of each question.
        k: At most num_samples.

    Reference:
        Chen et al. 2021, Evaluating Large Language Models Trained on Code. https://arxiv.org/abs/2107.03374
    """
    assert 1 <= k <= num_samples, f"pass@{k} of {num_samples} samples"
    total = math.comb(num_samples, k)
    return sum(1.0 - math.comb(num_samples - right, k) / total for right in num_correct) / len(num_correct)


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """Where the true accuracy lies with 95% confidence; unlike a bootstrap it is not empty when all answers are right.

    Args:
        num_correct: Right answers.
        num_examples: All answers, at least 1.

    Reference:
        Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference. https://doi.org/10.2307/2276774
    """
    z, share = 1.959964, num_correct / num_examples
    center = share + z * z / (2 * num_examples)
    spread = z * math.sqrt(share * (1 - share) / num_examples + z * z / (4 * num_examples**2))
    scale = 1 + z * z / num_examples
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)

"""Numbers against formulas and simulations."""

import itertools

import numpy as np
import pytest

from nanochat_lit.evaluation.statistics import (
    NUM_RESAMPLES,
    centered,
    interval,
    mean_interval,
    pass_at_k,
    resampled_accuracies,
    wilson_interval,
)


def test_centered():
    assert centered(0.25, 0.25) == 0
    assert centered(1.0, 0.62) == 1
    assert centered(0.0, 0.2) == pytest.approx(-0.25)


def test_the_interval_is_that_of_a_bootstrap():
    right = np.repeat([1, 0], [30, 70])
    rng = np.random.default_rng(1)
    drawn = right[rng.integers(0, 100, (NUM_RESAMPLES, 100))].mean(axis=1)
    found = interval(resampled_accuracies(30, 100, np.random.default_rng(2)))
    assert found == pytest.approx(interval(drawn), abs=0.011)  # one answer
    assert found == pytest.approx((0.3 - 1.96 * 0.0458, 0.3 + 1.96 * 0.0458), abs=0.011)


def test_all_right_leaves_nothing_to_vary():
    assert interval(resampled_accuracies(5, 5, np.random.default_rng(0))) == (1.0, 1.0)


@pytest.mark.parametrize(("num_correct", "num_samples", "k"), [(0, 5, 2), (2, 5, 1), (2, 5, 3), (3, 5, 5), (5, 5, 1)])
def test_pass_at_k_counts_the_choices_of_k(num_correct, num_samples, k):
    samples = [1] * num_correct + [0] * (num_samples - num_correct)
    choices = list(itertools.combinations(samples, k))
    expected = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at_k([num_correct], num_samples, k) == pytest.approx(expected)


def test_pass_at_k_is_a_mean_over_questions():
    assert pass_at_k([0, 4], 4, 2) == 0.5


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (100, 100, 0.9630, 1.0), (0, 20, 0.0, 0.1611), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval(correct, count, low, high):
    """The last is an example of Newcombe (1998); the others are quick to do by hand (n/(n+z^2) and its mirror)."""
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (39, 2.02269)]
)
def test_mean_interval_by_the_table_of_the_t_distribution(degrees, quantile):
    values = np.random.default_rng(degrees).normal(3.0, 2.0, degrees + 1)
    half = quantile * values.std(ddof=1) / len(values) ** 0.5
    assert mean_interval(list(values)) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half), rel=1e-5
    )


def test_mean_interval_of_too_few_values():
    assert mean_interval([]) == (None, None, None)
    assert mean_interval([2.0]) == (2.0, None, None)

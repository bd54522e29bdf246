"""Accuracy and pass@k against counting by hand."""

import pytest

from nanochat_lit.evaluation.statistics import PassRates


def test_rates_of_a_few_questions():
    rates = PassRates(4)
    for is_right, num_right in ((True, 4), (False, 1), (False, 0)):
        rates.update(is_right, num_right)
    assert rates.compute() == pytest.approx({"accuracy": 1 / 3, "pass@1": 5 / 12, "pass@4": 2 / 3})


def test_without_samples_there_is_only_the_greedy_answer():
    rates = PassRates(0)
    rates.update(True, 0)
    assert rates.compute() == {"accuracy": 1.0}

"""Step times against hand-made clocks."""

import math
import random

import numpy as np
import pytest

from nanochat_lit.training.callbacks.progress import RECENT_STEPS, StepTimes, percentile


def add(times, begin_s, end_s, waited_s=0.0):
    times.begin(begin_s)
    times.end(end_s, waited_s)


def test_a_window_leaves_out_what_lies_between_steps():
    times = StepTimes()
    add(times, 10.0, 11.0, waited_s=0.1)
    add(times, 50.0, 53.0, waited_s=0.4)  # a validation of 39 seconds before it
    window = times.close_window()
    assert (window.num_steps, window.seconds) == (2, 4.0)
    assert window.data_wait == pytest.approx(0.1)
    add(times, 53.0, 55.0, waited_s=1.4)
    window = times.close_window()
    assert (window.num_steps, window.seconds) == (1, 2.0)
    assert window.data_wait == pytest.approx(0.5), "what was waited in the window before is not counted again"


def test_micro_batches_are_one_step():
    times = StepTimes()
    for at_s in (1.0, 2.0, 3.0):
        times.begin(at_s)
    times.end(5.0, 0.0)
    assert times.close_window().seconds == 4.0
    assert len(times) == 1


def test_percentiles_leave_out_the_first_window():
    """It compiles: a minute there must not be the 95th percentile of the next hundred steps."""
    times = StepTimes()
    add(times, 0.0, 60.0)
    assert times.close_window().p95_s == 60.0
    for step_s in (1.0, 2.0, 3.0, 4.0):
        add(times, 0.0, step_s)
        window = times.close_window()
    assert (window.p50_s, window.p95_s) == (2.0, 4.0)
    assert times.median_s() == 2.5


def test_percentiles_are_of_recent_steps():
    times = StepTimes()
    for step_s in [9.0] * RECENT_STEPS + [1.0] * RECENT_STEPS:
        add(times, 0.0, step_s)
        window = times.close_window()
    assert window.p95_s == 1.0


def test_percentile_is_numpys_inverted_cdf():
    rng = random.Random(0)
    for size in range(1, 40):
        values = [rng.random() for _ in range(size)]
        for share in (0.5, 0.95):
            assert percentile(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_no_step_no_median():
    assert math.isnan(StepTimes().median_s())

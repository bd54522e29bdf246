"""Schedules at points whose values are known by hand."""

import pytest

from nanochat_lit.optim import Schedule


def test_learning_rate():
    schedule = Schedule(num_steps=1000)
    assert schedule.warmdown_start == 350
    assert schedule.lr_multiplier(0) == pytest.approx(1 / 40)
    assert schedule.lr_multiplier(39) == schedule.lr_multiplier(40) == schedule.lr_multiplier(350) == 1.0
    assert schedule.lr_multiplier(675) == pytest.approx(0.5 + 0.5 * 0.05)
    assert schedule.lr_multiplier(1000) == pytest.approx(0.05)
    values = [schedule.lr_multiplier(step) for step in range(350, 1001)]
    assert values == sorted(values, reverse=True)


def test_momentum():
    schedule = Schedule(num_steps=2000)
    assert schedule.muon_momentum(0) == 0.85
    assert schedule.muon_momentum(200) == pytest.approx(0.91)
    assert schedule.muon_momentum(400) == schedule.muon_momentum(699) == 0.97
    assert schedule.muon_momentum(1350) == pytest.approx(0.935)
    assert schedule.muon_momentum(2000) == pytest.approx(0.90)


def test_weight_decay_is_a_cosine():
    schedule = Schedule(num_steps=100)
    assert [round(schedule.weight_decay_multiplier(step), 6) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]
    assert Schedule(num_steps=100, decay_weight_decay=False).weight_decay_multiplier(50) == 1.0


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_short_runs_stay_finite(num_steps):
    for warmdown in (0.0, 0.65, 1.0):
        schedule = Schedule(num_steps=num_steps, warmdown=warmdown, warmup=0)
        for step in range(num_steps + 1):
            assert 0.0 <= schedule.lr_multiplier(step) <= 1.0
            assert 0.85 <= schedule.muon_momentum(step) <= 0.97

"""What is made of losses: their average, the batch with the highest, an explosion told from a spike."""

import math
import random

import pytest
import torch

from nanochat_lit.training.callbacks.loss_guard import PATIENCE, Explosion, WorstBatch
from nanochat_lit.training.callbacks.progress import SmoothedLoss
from nanochat_lit.training.module import StepLosses


def test_smoothed_loss_is_a_weighted_mean():
    """Against the definition: each loss weighs 0.95 of the one after it, and the weights are divided by their sum."""
    rng = random.Random(0)
    losses = [rng.uniform(2, 8) for _ in range(50)]
    smoothed = SmoothedLoss(0.95)
    assert math.isnan(smoothed.value)
    for count in range(1, len(losses) + 1):
        smoothed.add(losses[count - 1])
        weights = [0.95 ** (count - 1 - at) for at in range(count)]
        expected = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
        assert smoothed.value == pytest.approx(expected, rel=1e-12)
    again = SmoothedLoss(0.95)
    again.load_state_dict(smoothed.state_dict())
    again.add(3.0)
    smoothed.add(3.0)
    assert again.value == smoothed.value


def test_step_losses_are_means_of_micro_batches():
    losses = StepLosses()
    for step in ([1.0, 2.0], [3.0, 5.0]):
        for loss in step:
            losses.add(torch.tensor(loss, requires_grad=True))
            assert float(losses.latest) == loss
        losses.end_step()
    restored = StepLosses()
    restored.restore(losses.pending(), torch.device("cpu"))
    assert losses.pop().tolist() == restored.pop().tolist() == [1.5, 4.0]
    assert losses.pending() is None


@pytest.mark.parametrize(
    ("losses", "kept", "loss"),
    [
        ([2.0, 5.0, 3.0], 1, 5.0),
        ([2.0, math.nan, 9.0, math.nan], 1, math.inf),
        ([2.0, 9.0, math.inf, math.nan], 2, math.inf),
        ([math.nan, 1.0], 0, math.inf),
    ],
)
def test_worst_batch(losses, kept, loss):
    worst = WorstBatch()
    for step, value in enumerate(losses):
        worst.add(torch.tensor(value), torch.full((2, 3), step), step + 100)
    assert worst.fetch() == (loss, kept + 100, [[kept] * 3] * 2)
    worst.clear()
    assert worst.loss is None


def steady(num_steps, level=3.0):
    rng = random.Random(0)
    return [level + rng.gauss(0, 0.1) for _ in range(num_steps)]


def test_an_explosion_is_found_after_ten_steps():
    explosion = Explosion(3.0)
    assert not explosion.found_in(steady(100))
    assert not explosion.found_in([7.0] * (PATIENCE - 1))
    assert explosion.found_in([7.0])
    assert explosion.usual == pytest.approx(3.0, abs=0.1), "the high steps are not in the average"


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(steady(50) + [11.0] * (PATIENCE - 1) + steady(50), id="a_spike_that_recovers"),
        pytest.param(steady(50) + [11.0, 3.0] * 40, id="many_single_odd_batches"),
        pytest.param([10.4 - 0.1 * step for step in range(70)], id="learning"),
        pytest.param(steady(50) + steady(50, 5.5), id="worse_by_less_than_the_margin"),
    ],
)
def test_what_is_no_explosion(losses):
    explosion = Explosion(3.0)
    assert not any(explosion.found_in([loss]) for loss in losses)


def test_windows_of_any_size_find_the_same():
    losses = steady(30) + [9.0] * PATIENCE
    one, other = Explosion(3.0), Explosion(3.0)
    assert not one.found_in(losses[:33])
    state = one.state_dict()
    one = Explosion(3.0)
    one.load_state_dict(state)
    assert one.found_in(losses[33:])
    assert [other.found_in([loss]) for loss in losses][-2:] == [False, True]


def test_zero_turns_it_off():
    assert not Explosion(0.0).found_in([3.0] * 20 + [30.0] * 50)

import math

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling import row_generators, sample_next


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_greedy_takes_the_likeliest_token() -> None:
    logits = torch.randn(5, 11, generator=generator())
    assert sample_next(logits).tolist() == logits.argmax(-1).tolist()
    assert sample_next(logits, temperature=1.0, top_k=1).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (1.0, 0), (2.0, 3), (1.0, 99)])
def test_frequencies_follow_the_softmax(temperature: float, top_k: int | None) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, 0.0])
    scores = [math.exp(x / temperature) for x in logits.tolist()]
    if top_k:
        least = sorted(scores)[-min(top_k, 5)]
        scores = [s if s >= least else 0.0 for s in scores]
    expected = torch.tensor(scores) / sum(scores)
    count = 40_000
    drawn = sample_next(logits.expand(count, -1), temperature, top_k, generator())
    frequencies = torch.bincount(drawn, minlength=5) / count
    assert (frequencies - expected).abs().max() < 0.01  # 4 standard deviations at p = 0.5
    assert (frequencies[expected == 0] == 0).all()


def test_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.randn(4, 9, generator=generator()) * 15
    assert sample_next(logits, 1e-30, None, generator()).tolist() == logits.argmax(-1).tolist()


def test_a_row_with_its_own_generator_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(4, 50, generator=generator())
    together = sample_next(logits, 1.0, None, row_generators(3, 4, "cpu"))
    alone = [sample_next(logits[i : i + 1], 1.0, None, row_generators(3, i + 1, "cpu")[i:]) for i in range(4)]
    assert together.tolist() == [int(one) for one in alone]


def test_seeds_and_rows_draw_different_numbers() -> None:
    first = {own.initial_seed() for seed in range(20) for own in row_generators(seed, 50, "cpu")}
    assert len(first) == 20 * 50


@pytest.mark.parametrize(("temperature", "top_k"), [(-0.1, None), (math.nan, None), (math.inf, None), (1.0, -1)])
def test_impossible_settings(temperature: float, top_k: int | None) -> None:
    with pytest.raises(UserError, match=r"temperature is|top_k is"):
        sample_next(torch.zeros(1, 3), temperature, top_k)

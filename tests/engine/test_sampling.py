import math

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling import row_random, sample_next
from nanochat_lit.engine.sampling_params import SamplingParams


def params(temperature: float, top_k: int | None, top_p: float) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)  # type: ignore[arg-type]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_greedy_takes_the_likeliest_token() -> None:
    logits = torch.randn(5, 11, generator=generator())
    assert sample_next(logits, SamplingParams()).tolist() == logits.argmax(-1).tolist()
    assert sample_next(logits, params(1.0, 1, 1.0), [0.5] * 5).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, 1),
        (0.5, None, 1),
        (1.0, 0, 1),
        (2.0, 3, 1),
        (1.0, 99, 1),
        (1.0, None, 0.7),
        (1.0, 4, 0.95),
        (1.0, None, 0.01),
    ],
)
def test_frequencies_follow_the_softmax(temperature: float, top_k: int | None, top_p: float) -> None:
    logits = [2.0, -1.0, 0.5, 1.0, 0.0]
    expected = naive_shares(logits, temperature, top_k or 5, top_p)
    count = 40_000
    uniforms = torch.rand(count, generator=generator(), dtype=torch.float64).tolist()
    drawn = sample_next(torch.tensor(logits).expand(count, -1), params(temperature, top_k, top_p), uniforms)
    frequencies = torch.bincount(drawn, minlength=5) / count
    assert (frequencies - expected).abs().max() < 0.01  # 4 standard deviations at p = 0.5
    assert (frequencies[expected == 0] == 0).all()


def naive_shares(logits: list[float], temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Probabilities by the definitions: the k likeliest, of these the fewest that have top_p together."""
    scores = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    kept = sorted(scores, key=lambda i: -scores[i])[:top_k]
    total = sum(scores[i] for i in kept)
    nucleus: list[int] = []
    while sum(scores[i] for i in nucleus) < top_p * total - 1e-12:
        nucleus.append(kept[len(nucleus)])
    whole = sum(scores[i] for i in nucleus)
    return torch.tensor([scores[i] / whole if i in nucleus else 0.0 for i in range(len(logits))])


def test_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.randn(4, 9, generator=generator()) * 15
    assert sample_next(logits, params(1e-30, None, 1.0), [0.1, 0.5, 0.7, 0.99]).tolist() == logits.argmax(-1).tolist()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(4, 50, generator=generator())
    uniforms = [0.1, 0.9, 0.5, 0.3]
    for top_k, top_p in ((None, 1.0), (7, 1.0), (None, 0.8), (7, 0.8)):
        together = sample_next(logits, params(1.0, top_k, top_p), uniforms)
        alone = [sample_next(logits[i : i + 1], params(1.0, top_k, top_p), uniforms[i : i + 1]) for i in range(4)]
        assert together.tolist() == [int(one) for one in alone]


def test_seeds_and_samples_draw_different_numbers() -> None:
    assert len({row_random(seed, sample).random() for seed in range(20) for sample in range(50)}) == 20 * 50
    assert row_random(3, 4).random() == row_random(3, 4).random()


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (3, 1.0), (None, 0.5), (4, 0.5)])
def test_the_ends_of_the_unit_interval_choose_possible_tokens(top_k: int | None, top_p: float) -> None:
    logits = torch.tensor([[1.0, -math.inf, 0.0, 0.5, -math.inf, -20.0]])
    likeliest, last = (sample_next(logits, params(1.0, top_k, top_p), [u]).item() for u in (0.0, 1 - 2**-53))
    assert likeliest == 0
    assert last in {0, 2, 3, 5}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(-0.1, None, 1), (math.nan, None, 1), (math.inf, None, 1), (1.0, -1, 1), (1.0, None, 0.0), (1.0, None, 1.1)],
)
def test_impossible_settings(temperature: float, top_k: int | None, top_p: float) -> None:
    with pytest.raises(UserError, match=r"temperature is|top_k is|top_p is"):
        sample_next(torch.zeros(1, 3), params(temperature, top_k, top_p), [0.5])

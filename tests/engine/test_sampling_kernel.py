"""The sampling kernel against PyTorch's rules, row by row."""

import math

import pytest
import torch

from nanochat_lit.engine import sampling
from nanochat_lit.engine.sampling import row_random, sample_each, sample_next, sampling_library
from nanochat_lit.engine.sampling_params import Request, SamplingParams

pytestmark = pytest.mark.skipif(sampling_library() is None, reason="no C++ compiler found")


def params(temperature: float, top_k: int | None, top_p: float) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)  # type: ignore[arg-type]


def rows(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 15, 16, 300, 5000])
@pytest.mark.parametrize("top_k", [None, 0, 1, 5, 50, 9999])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_tokens_are_those_of_sample_next(size: int, top_k: int | None, top_p: float) -> None:
    """For 64 numbers of the whole interval; the temperature differs from row to row, and some are greedy."""
    logits = rows(64, size)
    uniforms = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    temperatures = [(0.0, 0.3, 1.0, 2.0)[i % 4] for i in range(64)]
    settings = [params(temperature, top_k, top_p) for temperature in temperatures]
    ours = sample_each(logits, settings, uniforms)
    for i, token in enumerate(ours):
        expected = sample_next(logits[i : i + 1], settings[i], uniforms[i : i + 1])
        assert token == expected.item(), i


@pytest.mark.parametrize("top_p", [1.0, 0.95])
@pytest.mark.parametrize("top_k", [None, 3])
def test_ties_and_impossible_tokens(top_k: int | None, top_p: float) -> None:
    """The first of equals is likelier; a token of no probability is never chosen, at either end of the interval."""
    logits = torch.full((1, 40), -math.inf)
    logits[0, [7, 20, 33]] = torch.tensor([1.0, 1.0, 0.5])
    assert sample_each(logits, [params(0.0, top_k, top_p)], [0.0]) == [7]
    assert sample_each(logits, [params(1.0, top_k, top_p)], [0.0]) == [7]
    assert sample_each(logits, [params(1.0, top_k, top_p)], [1 - 2**-53]) == [33]
    assert sample_each(logits, [params(1.0, 2, 1.0)], [1 - 2**-53]) == [20]
    assert sample_each(logits, [params(1e-30, top_k, top_p)], [0.2]) == [7]


def test_a_flat_nucleus_takes_the_whole_vocabulary() -> None:
    """More candidates than are looked at first."""
    logits, uniforms = torch.zeros(50, 3000), [i / 50 for i in range(50)]
    ours = sample_each(logits, [params(1.0, None, 0.999)] * 50, uniforms)
    assert ours == [int(u * 0.999 * 3000 + 1e-9) for u in uniforms]


@pytest.mark.parametrize("threads", [1, 3])
def test_neighbours_and_threads_do_not_matter(threads: int) -> None:
    logits, uniforms = rows(9, 777), [i / 9 for i in range(9)]
    settings = [params(1.0, None, 1.0), params(0.7, 5, 1.0), params(0.0, 0, 0.8)] * 3
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = sample_each(logits, settings, uniforms)
    finally:
        torch.set_num_threads(before)
    for i, token in enumerate(together):
        assert [token] == sample_each(logits[i : i + 1], [settings[i]], [uniforms[i]])


def test_an_engine_without_the_kernel_chooses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several settings, which PyTorch samples in groups; a greedy row draws no number that another would miss."""
    logits = rows(12, 500)
    asked = [
        Request(
            prompt_ids=[1], temperature=(0.0, 0.8, 1.5)[i % 3], top_k=(None, 20)[i % 2], top_p=(1.0, 0.9)[i % 4 // 2]
        )
        for i in range(12)
    ]
    ours = sampling.sample_rows(asked, [row_random(7, i) for i in range(12)], logits)
    monkeypatch.setattr(sampling, "has_sampling_kernel", lambda _: False)
    assert sampling.sample_rows(asked, [row_random(7, i) for i in range(12)], logits).tolist() == ours.tolist()

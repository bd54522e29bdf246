"""Every form of attention against the naive masked one, forward and backward."""

import time

import pytest
import torch

from nanochat_lit.model.attention import blocked_attention, causal_attention


def naive(q, k, v, window):
    """Dense scores, dense mask, float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    offset = k.shape[2] - q.shape[2]
    distance = torch.arange(q.shape[2])[:, None] + offset - torch.arange(k.shape[2])[None, :]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill((distance < 0) | (distance > window), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def tensors(num_queries, num_keys, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, num_queries, 4, 16, generator=generator, requires_grad=True)
    k = torch.randn(2, num_keys, kv_heads, 16, generator=generator, requires_grad=True)
    v = torch.randn(2, num_keys, kv_heads, 16, generator=generator, requires_grad=True)
    return q, k, v


@pytest.mark.parametrize("form", [causal_attention, blocked_attention])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "window"),
    [(300, 300, 128), (300, 300, 300), (129, 129, 1), (257, 257, 0), (5, 140, 100), (200, 333, 64), (7, 7, 1000)],
)
def test_equals_naive(form, kv_heads, num_queries, num_keys, window):
    inputs = tensors(num_queries, num_keys, kv_heads)
    out, expected = form(*inputs, window), naive(*inputs, window)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-4)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad((out * weight).sum(), inputs)
    for mine, theirs in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("num_keys", "window"), [(1, 10), (50, 10), (50, 50)])
def test_one_query_equals_naive(num_keys, window):
    inputs = tensors(1, num_keys)
    torch.testing.assert_close(causal_attention(*inputs, window), naive(*inputs, window).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called")  # compiling it takes longer than the rest of the file
def test_flex_window_mask_is_the_same_mask(monkeypatch):
    """The CUDA form, run here by FlexAttention's own reference (forward only)."""
    from torch.nn.attention.flex_attention import flex_attention

    from nanochat_lit.model import attention

    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention)
    attention._window_block_mask.cache_clear()
    inputs = [x.detach() for x in tensors(256, 256)]
    torch.testing.assert_close(
        attention._flex_attention(*inputs, 100), naive(*inputs, 100).float(), atol=1e-5, rtol=1e-4
    )
    attention._window_block_mask.cache_clear()


def test_a_narrow_window_costs_less_than_full_attention():
    """T = 4096, window 512: forward and backward, best of three each, at the dispatch that users get."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4096, 2, 64, generator=generator, requires_grad=True) for _ in range(3))

    def seconds(window):
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            causal_attention(q, k, v, window).sum().backward()
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(512) < seconds(4096)

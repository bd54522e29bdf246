"""Divergences from a teacher against torch's own, and the coarser ones of top-k by hand."""

import pytest
import torch
import torch.nn.functional as F

from nanochat_lit.optim.distillation import chunked_divergence, forward_kl, reverse_kl

LOGITS = torch.randn(2, 50, 30, generator=torch.Generator().manual_seed(0)) * 3
STUDENT, TEACHER = LOGITS.log_softmax(-1)


@pytest.mark.parametrize("top_k", [0, 30, 99])
def test_forward_is_torchs(top_k):
    """Of all tokens; within 1e-5 nats."""
    expected = F.kl_div(STUDENT, TEACHER, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(forward_kl(STUDENT, TEACHER, top_k), expected, atol=1e-5, rtol=0)


def test_reverse_is_torchs():
    """Within 1e-5 nats."""
    expected = F.kl_div(TEACHER, STUDENT, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(reverse_kl(STUDENT, TEACHER), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("top_k", [1, 5, 29])
def test_top_k_counts_the_rest_as_one_outcome(top_k):
    """By hand in float64, within 1e-4 nats; never more than over all tokens."""
    found = forward_kl(STUDENT, TEACHER, top_k)
    for row in range(len(STUDENT)):
        p, q = TEACHER[row].double().exp(), STUDENT[row].double().exp()
        kept = p.argsort(descending=True)[:top_k]
        p, q = (torch.cat([own[kept], 1 - own[kept].sum()[None]]) for own in (p, q))
        assert float(found[row]) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-4)
    assert (found <= forward_kl(STUDENT, TEACHER) + 1e-5).all()
    assert forward_kl(TEACHER, TEACHER, top_k).abs().max() < 1e-6


def test_a_certain_teacher():
    """Of which the top tokens have all the mass: finite, and so is the gradient."""
    teacher = torch.full((1, 8), -200.0).index_fill(1, torch.tensor([3]), 0.0).log_softmax(-1)
    student = torch.zeros(1, 8, requires_grad=True)
    forward_kl(student.log_softmax(-1), teacher, 2).sum().backward()
    assert forward_kl(student.log_softmax(-1), teacher, 2).item() == pytest.approx(
        torch.tensor(8.0).log().item(), abs=1e-4
    )
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_chunks_add_up(divergence):
    """Values and gradients of whole logits, within 1e-5."""
    generator = torch.Generator().manual_seed(1)
    states, teacher_states = torch.randn(10, 4, generator=generator), torch.randn(10, 6, generator=generator)
    weight, teacher_weight = torch.randn(30, 4, generator=generator), torch.randn(30, 6, generator=generator)
    grads = []
    for is_chunked in (True, False):
        rows, own = states.clone().requires_grad_(True), weight.clone().requires_grad_(True)
        if is_chunked:
            found = chunked_divergence(
                rows, teacher_states, lambda x, own=own: x @ own.T, lambda x: x @ teacher_weight.T, divergence, 3
            )
        else:
            found = divergence((rows @ own.T).log_softmax(-1), (teacher_states @ teacher_weight.T).log_softmax(-1))
        found.sum().backward()
        grads.append((found.detach(), rows.grad, own.grad))
    for ours, whole in zip(*grads, strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)

"""Float8 matmuls against their definition in float64: torch's scaled matmul runs on a CPU too."""

import pytest
import torch

from nanochat_lit.model.float8 import Float8ChunkMatmuls, allows_float8, float8_linear, to_float8
from nanochat_lit.model.loss import softcapped_cross_entropy
from nanochat_lit.training.execution import convert_to_float8

WIDE = {"n_embd": 128, "n_head": 2, "n_kv_head": 2, "sequence_len": 32}


def rounded(x, dtype):
    """What is left of a tensor in float8 with one scale, as float64."""
    scale = torch.finfo(dtype).max / x.double().abs().max()
    return (x.double() * scale).to(dtype).double() / scale


@pytest.mark.parametrize(
    ("shape", "allowed"),
    [((768, 768), True), ((128, 512), True), ((112, 512), False), ((768, 12), False), ((776, 768), False)],
)
def test_which_dimensions(shape, allowed):
    assert allows_float8(*shape) == allows_float8(*shape[::-1]) == allowed


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("amplitude", [0.0, 1e-30, 1e-3, 1e30])
def test_scaling_keeps_any_range_finite(dtype, amplitude):
    x = torch.linspace(-amplitude, amplitude, 33)
    entries, inverse = to_float8(x, dtype)
    assert entries.dtype == dtype
    restored = entries.float() * inverse
    assert restored.isfinite().all()
    torch.testing.assert_close(restored, x, rtol=2**-3, atol=max(amplitude * 2**-8, 1e-12))


def test_the_layer_equals_its_definition():
    """The three products of operands rounded to float8, exact but for their own dtype: bfloat16, and float32 for the weight."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 128, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(144, 128, generator=generator) * 0.1).requires_grad_()
    out = float8_linear(x, weight)
    gradient = torch.randn(2, 24, 144, generator=generator).bfloat16() * 1e-4
    out.backward(gradient)
    x8, w8 = (rounded(value.detach(), torch.float8_e4m3fn) for value in (x, weight))
    g8 = rounded(gradient, torch.float8_e5m2)
    close = {"rtol": 2**-7, "atol": 1e-3}
    torch.testing.assert_close(out.double(), x8 @ w8.T, **close)
    assert out.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.double() * 1e4, g8 @ w8 * 1e4, **close)
    assert weight.grad.dtype == torch.float32
    expected = g8.flatten(0, 1).T @ x8.flatten(0, 1)
    torch.testing.assert_close(weight.grad.double() * 1e4, expected * 1e4, rtol=1e-5, atol=1e-4)


def test_the_chunked_loss_equals_its_definition(monkeypatch):
    """Chunk by chunk: logits of rounded operands, and the gradients of rounded gradients; within bfloat16's precision."""
    monkeypatch.setattr("nanochat_lit.model.loss.rows_per_chunk", lambda *_: 16)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 32, 128, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(256, 128, generator=generator) * 0.05).requires_grad_()
    targets = torch.randint(256, (1, 32), generator=generator)
    loss = softcapped_cross_entropy(
        hidden, weight, targets, make_matmuls=lambda w, h, _: Float8ChunkMatmuls(w, h.dtype)
    )
    loss.backward()
    w8 = rounded(weight.detach(), torch.float8_e4m3fn)
    total, grad_rows, grad_weight = 0.0, [], 0.0
    for rows, target in zip(hidden.detach()[0].split(16), targets[0].split(16), strict=True):
        rows8 = rounded(rows, torch.float8_e4m3fn)
        logits = (rows8 @ w8.T).bfloat16().double().requires_grad_()
        part = torch.nn.functional.cross_entropy(15 * torch.tanh(logits / 15), target, reduction="sum")
        total += part.item()
        g8 = rounded(torch.autograd.grad(part, logits)[0].bfloat16(), torch.float8_e5m2)
        grad_rows.append(g8 @ w8 / 32)
        grad_weight += g8.T @ rows8 / 32
    assert loss.item() == pytest.approx(total / 32, rel=1e-3)
    for ours, theirs in ((hidden.grad[0], torch.cat(grad_rows)), (weight.grad, grad_weight)):
        # a gradient on the edge between two float8 numbers may fall to either side
        assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()


@pytest.fixture
def bfloat16_model(random_model):
    return random_model(std=0.02, vocab_size=320, **WIDE).set_compute_dtype(torch.bfloat16)


def gradients(model, tokens):
    model.zero_grad()
    loss = model(tokens, tokens)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_in_float8_is_near_bfloat16_and_evaluates_as_before(bfloat16_model, checkpointing):
    """float8 keeps three or four bits of mantissa: the loss within 2%, the gradients' direction within a cosine of 0.98."""
    model = bfloat16_model
    model.activation_checkpointing = checkpointing
    tokens = torch.randint(320, (2, 32))
    with torch.no_grad():
        before = model(tokens)
    exact, expected = gradients(model, tokens)
    keys = list(model.state_dict())
    assert convert_to_float8(model) == (13, 14)  # the gate of the value embedding is too small
    loss, found = gradients(model, tokens)
    assert loss == pytest.approx(exact, rel=0.02)
    assert loss != exact
    for name in ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_v.weight", "lm_head.weight"):
        assert found[name].dtype == torch.float32
        assert torch.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0) > 0.98
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), before, atol=0, rtol=0)
    assert list(model.state_dict()) == keys


def test_a_number_of_rows_that_does_not_fit_takes_bfloat16(bfloat16_model):
    tokens = torch.randint(320, (1, 31))
    exact, _ = gradients(bfloat16_model, tokens)
    convert_to_float8(bfloat16_model)
    assert gradients(bfloat16_model, tokens)[0] == exact


def test_a_narrow_model_is_left_alone(random_model):
    assert convert_to_float8(random_model(n_embd=64)) == (0, 14)

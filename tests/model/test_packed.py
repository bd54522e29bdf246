"""Packed and 8-bit products against plain ones."""

import pytest
import torch
from torch import nn

from nanochat_lit import GPT, GPTConfig
from nanochat_lit.model.decode_kernel import kernel_library
from nanochat_lit.model.packed import (
    PackedLinear,
    can_pack,
    pack_linears,
    quantize_groups,
    quantize_rows,
)

WEIGHT = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
INPUT = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(1))
needs_kernel = pytest.mark.skipif(kernel_library() is None, reason="needs a C++ compiler")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.0)])
def test_packed_equals_plain(dtype: torch.dtype, tolerance: float) -> None:
    if not can_pack(torch.device("cpu"), dtype):
        pytest.skip(f"oneDNN packs no {dtype} on this processor")
    out = PackedLinear(WEIGHT.to(dtype))(INPUT.to(dtype))
    expected = nn.functional.linear(INPUT.to(dtype), WEIGHT.to(dtype))
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


def test_rows_are_rounded_to_their_own_scale() -> None:
    values = torch.tensor([[1.27, -0.635, 0.004], [0.0, 0.0, 0.0], [1e-3, 2e-3, -127e-3]])
    rounded, scales = quantize_rows(values)
    assert rounded.tolist() == [[127, -64, 0], [0, 0, 0], [1, 2, -127]]
    assert ((rounded * scales[:, None] - values).abs() <= scales[:, None] * 0.500001).all()


def test_groups_are_rounded_to_the_scale_with_the_least_error() -> None:
    values = torch.randn(7, 70, generator=torch.Generator().manual_seed(3))
    values[2] = 0
    rounded, scales = quantize_groups(values)
    assert (rounded.shape, scales.shape, scales.dtype) == ((7, 70), (7, 3), torch.bfloat16)
    assert (int(rounded.min()), int(rounded.max())) == (-8, 7)
    spread = scales.float().repeat_interleave(32, dim=1)[:, :70]
    found = (rounded * spread - values).square()
    assert not rounded[2].any()
    for row in range(7):
        for start in range(0, 70, 32):
            group = values[row, start : start + 32]
            peak = group[group.abs().argmax()]
            whole = peak / -8  # the plain scale, as in llama.cpp's Q4_0
            plain = ((group / whole).round().clamp(-8, 7) * whole - group).square().sum() if peak else 0.0
            assert found[row, start : start + 32].sum() <= 1.01 * plain
    assert found.sum() < 0.95 * sum_of_plain_errors(values)


def sum_of_plain_errors(values: torch.Tensor) -> torch.Tensor:
    """Squared errors of rounding each group by its largest weight."""
    groups = nn.functional.pad(values, (0, -values.shape[1] % 32)).view(-1, 32)
    peaks = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
    scales = torch.where(peaks == 0, 1.0, peaks / -8)
    return ((groups / scales).round().clamp(-8, 7) * scales - groups).square().sum()


@needs_kernel
def test_the_loss_of_a_packed_model_is_that_of_its_logits() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_kv_head=2, n_embd=128, vocab_size=100, sequence_len=64))
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.lm_head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    inputs = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(2))
    targets = inputs.roll(-1, 1)
    targets[:, 10:15] = -1
    with torch.no_grad():
        plain = model(inputs, targets)
        for quantize, tolerance in ((None, 1e-5), ("int8", 0.05), ("int4", 0.1)):
            copy = GPT(model.config)
            copy.load_state_dict(model.state_dict())
            copy.set_compute_dtype(torch.float32)
            pack_linears(copy, quantize)
            loss = copy(inputs, targets)
            expected = nn.functional.cross_entropy(copy(inputs).flatten(0, 1), targets.flatten(), ignore_index=-1)
            torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
            assert abs(loss - plain) < tolerance
            assert copy(inputs, targets, reduction="none").shape == (3, 20)

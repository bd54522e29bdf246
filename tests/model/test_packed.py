"""Packed and 8-bit products against plain ones."""

import pytest
import torch
from torch import nn

from nanochat_lit import GPT, GPTConfig
from nanochat_lit.model.packed import Int8Linear, PackedLinear, can_pack, can_quantize, pack_linears, quantize_rows

WEIGHT = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
INPUT = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(1))
needs_int8 = pytest.mark.skipif(not can_quantize(torch.device("cpu")), reason="needs a C++ compiler or AVX512-VNNI")
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX512-VNNI")


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


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_equals_the_product_of_the_rounded_values(dtype: torch.dtype) -> None:
    out = Int8Linear(WEIGHT)(INPUT.to(dtype))
    weight, weight_scales = quantize_rows(WEIGHT)
    rows, scales = quantize_rows(INPUT.to(dtype).float().reshape(-1, 64))
    expected = (rows.double() @ weight.double().T) * weight_scales * scales[:, None]
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.reshape(-1, 96).double(), expected, atol=1e-4, rtol=tolerance)
    assert out.dtype == dtype
    exact = INPUT.reshape(-1, 64) @ WEIGHT.T
    assert (out.reshape(-1, 96) - exact).norm() / exact.norm() < 0.02


@needs_int8
def test_the_loss_of_a_packed_model_is_that_of_its_logits() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_kv_head=2, n_embd=128, vocab_size=100, sequence_len=64))
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.lm_head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    inputs = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(2))
    targets = inputs.roll(-1, 1)
    targets[:, 10:15] = -1
    with torch.no_grad():
        plain = model(inputs, targets)
        for quantize, tolerance in ((None, 1e-5), ("int8", 0.05)):
            copy = GPT(model.config)
            copy.load_state_dict(model.state_dict())
            copy.set_compute_dtype(torch.float32)
            pack_linears(copy, quantize)
            loss = copy(inputs, targets)
            expected = nn.functional.cross_entropy(copy(inputs).flatten(0, 1), targets.flatten(), ignore_index=-1)
            torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
            assert abs(loss - plain) < tolerance
            assert copy(inputs, targets, reduction="none").shape == (3, 20)

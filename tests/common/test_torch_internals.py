"""What torch_internals.py assumes of torch's private parts, an assumption a test: a failure names what has changed."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nanochat_lit.common import torch_internals as internals


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_policies_of_checkpointing_see_operators_by_name():
    seen = set()

    def policy(_, operator, *__, **___):
        seen.add(internals.operator_name(operator))
        return CheckpointPolicy.PREFER_RECOMPUTE

    def block(x):
        return F.scaled_dot_product_attention(x @ x[0, 0], x, x, is_causal=True)

    contexts = partial(create_selective_checkpoint_contexts, policy)
    checkpoint(block, random(1, 2, 8, 8).requires_grad_(), use_reentrant=False, context_fn=contexts)
    assert {"mm", "_scaled_dot_product_flash_attention_for_cpu"} <= seen, "operators are named in another way"
    assert {"mm", "_scaled_dot_product_flash_attention_for_cpu"} <= set(internals.COSTLY_OPERATORS)


def test_the_flash_operator_takes_windows():
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    expected = ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    assert names[:10] == [*expected, "return_debug_mask"], "arguments are in another order"
    assert {"window_size_left", "window_size_right"} <= set(names), "it takes no windows"


def test_kernels_of_fused_attention_have_numbers():
    numbers = {
        SDPBackend.MATH: "math",
        SDPBackend.FLASH_ATTENTION: "flash",
        SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    }
    numbers |= {SDPBackend.CUDNN_ATTENTION: "cuDNN"}
    assert {int(backend.value): name for backend, name in numbers.items()} == internals.SDPA_KERNELS
    assert internals.fused_kernel_of(random(1, 4, 16, 32), random(1, 2, 16, 32)) in internals.SDPA_KERNELS.values()


def test_float8_matmuls_scale_their_operands():
    left, right = (
        random(32, 16).to(torch.float8_e4m3fn),
        random(16, 48, seed=1).t().contiguous().t().to(torch.float8_e4m3fn),
    )
    scales = torch.tensor(0.5), torch.tensor(3.0)
    found = internals.scaled_matmul(left, right, *scales, torch.float32, fast=False)
    torch.testing.assert_close(found, 1.5 * (left.float() @ right.float()), atol=1e-3, rtol=1e-5)


def test_onednn_packs_weights():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    weight, rows = random(24, 40), random(3, 40, seed=1)
    found = internals.packed_linear(rows, internals.pack_weight(weight))
    torch.testing.assert_close(found, F.linear(rows, weight), atol=1e-4, rtol=1e-5)


def test_facts_of_the_processor():
    assert internals.has_bfloat16_onednn() in (True, False)


def test_changes_in_place_are_counted():
    tensor = torch.zeros(3)
    before = internals.version_of(tensor)
    tensor.add_(1)
    assert internals.version_of(tensor) > before
    assert internals.version_of(tensor) == internals.version_of(tensor)


@pytest.mark.parametrize("gradient", [1.0, float("inf")])
def test_overflows_are_found_and_can_be_changed(gradient):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer, scaler = torch.optim.SGD([parameter], lr=1.0), torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(1))  # makes the scale
    parameter.grad = torch.full((2,), gradient)
    scaler.unscale_(optimizer)
    (found,) = internals.overflows(scaler, optimizer)
    assert bool(found) == (gradient == float("inf"))
    found.fill_(1.0)  # as another rank's overflow does
    scaler.step(optimizer)
    assert torch.equal(parameter.detach(), torch.zeros(2)), "the scaler does not read its record of overflows"


def test_inductor_takes_a_compiler(monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", inductor.cpp.cxx)
    internals.set_inductor_compiler("/usr/bin/own-g++")
    assert inductor.cpp.cxx[1] == "/usr/bin/own-g++"

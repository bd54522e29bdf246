"""The optimizer against torch's and against what orthogonalisation promises."""

import copy

import pytest
import torch

from nanochat_lit import GPT, GPTConfig, MuonAdamW, param_groups
from nanochat_lit.common.errors import UserError
from nanochat_lit.optim import polar
from nanochat_lit.optim.muon_adamw import muon_step
from nanochat_lit.optim.muon_kernel import add_product, has_muon_kernel, muon_library
from nanochat_lit.optim.polar import equilibrate_rows, polar_express

ADAMW_OR_MUON = {"betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0, "momentum": 0.9, "beta2": 0.9}


def test_adamw_groups_equal_torch():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    mine = MuonAdamW([{"kind": "adamw", "params": [ours], **options}])
    reference = torch.optim.AdamW([theirs], **options, fused=False, foreach=False)
    for _ in range(5):
        ours.grad = torch.randn(5, 7, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_loaded_state_lies_where_its_parameters_do(kind):
    """A checkpoint is read to the CPU, the model may be elsewhere; fused AdamW refuses a step count on another device."""
    saved = MuonAdamW([{"kind": kind, "params": [torch.nn.Parameter(torch.zeros(4, 4))], "lr": 0.1, **ADAMW_OR_MUON}])
    saved.param_groups[0]["params"][0].grad = torch.ones(4, 4)
    saved.step()
    elsewhere = torch.nn.Parameter(torch.zeros(4, 4, device="meta"))
    loaded = MuonAdamW([{"kind": kind, "params": [elsewhere], "lr": 0.1, **ADAMW_OR_MUON}])
    loaded.load_state_dict(saved.state_dict())
    assert {tensor.device.type for tensor in loaded.state[elsewhere].values()} == {"meta"}


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64)])
def test_polar_express_is_near_the_polar_factor(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = polar_express(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    exact = left @ right
    assert (out - exact).norm() / exact.norm() < 0.1
    torch.testing.assert_close(
        out.norm(dim=(-2, -1)), torch.full((shape[0],), min(shape[1:]) ** 0.5), atol=1e-4, rtol=1e-4
    )


def test_equilibrated_rows_have_one_norm():
    matrices = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 8)[:, None]
    norms = equilibrate_rows(matrices).norm(dim=-1)
    torch.testing.assert_close(norms, norms.mean(-1, keepdim=True).expand_as(norms), atol=1e-5, rtol=1e-5)
    assert torch.isfinite(equilibrate_rows(torch.zeros(1, 3, 3))).all()


def test_a_zero_gradient_moves_nothing_and_makes_no_nan():
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = MuonAdamW(
        [{"kind": "muon", "params": [parameter], "lr": 0.1, "momentum": 0.9, "beta2": 0.9, "weight_decay": 0.0}]
    )
    parameter.grad = torch.zeros(4, 4)
    optimizer.step()
    assert torch.equal(parameter.data, torch.ones(4, 4))


def test_state_continues_after_saving():
    def run(steps, optimizer, model, offset=0):
        for step in range(steps):
            generator = torch.Generator().manual_seed(offset + step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    config = GPTConfig.from_depth(2, head_dim=32, aspect_ratio=32, vocab_size=64, sequence_len=32)
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer = MuonAdamW(param_groups(model))
    run(2, optimizer, model)
    other = GPT(config)
    other.load_state_dict(model.state_dict())
    resumed = MuonAdamW(param_groups(other))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as a file would be: not the same tensors
    run(2, optimizer, model, 2)
    run(2, resumed, other, 2)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_bad_groups_are_named():
    with pytest.raises(UserError, match="kind 'sgd'"):
        MuonAdamW([{"kind": "sgd", "params": [torch.nn.Parameter(torch.ones(2))], "lr": 1}])
    mixed = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3, 2))]
    with pytest.raises(UserError, match="matrices of one shape"):
        MuonAdamW([{"kind": "muon", "params": mixed, "lr": 1}])


def test_every_parameter_is_in_exactly_one_group():
    model = GPT(GPTConfig.from_depth(5, vocab_size=128, head_dim=32, n_kv_head=2))
    grouped = [parameter for group in param_groups(model) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 40, 20), (1, 20, 72), (2, 4, 12), (1, 48, 33)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_steps_as_the_tensor_operations_in_float32(shape, threads, monkeypatch):
    """The momentum is exact, and the step is as near to float32's as that of the tensor operations in bfloat16."""
    if muon_library() is None:
        pytest.skip("no C++ compiler found")
    generator = torch.Generator().manual_seed(0)
    count, *size = shape
    start = [torch.randn(size, generator=generator) for _ in range(count)]
    gradients = [torch.randn(size, generator=generator) for _ in range(count)]
    options = {"momentum": 0.9, "beta2": 0.9, "lr": 0.1, "weight_decay": 0.3}
    moments = (size[0], 1) if size[0] >= size[1] else (1, size[1])

    def step(dtype):
        parameters = [parameter.clone() for parameter in start]
        state = {"momentum_buffer": torch.zeros(shape), "second_moment": torch.ones(count, *moments)}
        for _ in range(2):
            muon_step(parameters, gradients, state, options, dtype)
        return torch.stack(parameters) - torch.stack(start), state

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, state = step(torch.bfloat16)
        ours_in_float32, _ = step(torch.float32)
        monkeypatch.setattr("nanochat_lit.optim.muon_adamw.has_muon_kernel", lambda *_: False)
        exact, exact_state = step(torch.float32)
        plain, _ = step(torch.bfloat16)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(state["momentum_buffer"], exact_state["momentum_buffer"])
    torch.testing.assert_close(state["second_moment"], exact_state["second_moment"], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(ours_in_float32, exact, atol=1e-4, rtol=1e-4)
    assert (ours - exact).norm() < 1.1 * (plain - exact).norm() < 0.15 * exact.norm()


def test_the_kernel_beside_the_products_is_exact(monkeypatch):
    """With no products at all, what goes in must come out as by the tensor operations, up to bfloat16's rounding."""
    if muon_library() is None:
        pytest.skip("no C++ compiler found")
    monkeypatch.setattr(polar, "POLAR_EXPRESS_COEFFICIENTS", ())
    has_kernel = has_muon_kernel
    monkeypatch.setattr(
        "nanochat_lit.optim.muon_adamw.has_muon_kernel",
        lambda m, dtype: dtype != torch.float32 and has_kernel(m, dtype),
    )
    for size in ((40, 20), (20, 72), (16, 16)):
        generator = torch.Generator().manual_seed(0)
        parameter, gradient = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
        options = {"momentum": 0.5, "beta2": 0.3, "lr": 1.0, "weight_decay": 0.3}
        moments = (size[0], 1) if size[0] >= size[1] else (1, size[1])
        results = []
        for dtype in (torch.bfloat16, torch.float32):
            ours = parameter.clone()
            state = {"momentum_buffer": torch.ones(1, *size), "second_moment": torch.ones(1, *moments)}
            muon_step([ours], [gradient], state, options, dtype)
            results.append((ours - parameter, state["second_moment"]))
        torch.testing.assert_close(results[0][0], results[1][0], atol=0.012, rtol=0.012)
        torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=2e-3)


def test_products_are_added():
    if muon_library() is None:
        pytest.skip("no C++ compiler found")
    for m, n in ((1, 1), (5, 3), (1, 47), (64, 64)):
        x, left, right = torch.randn(2, m, n), torch.randn(2, m, m), torch.randn(2, m, n)
        wanted = (3.0 * x.double() - 0.7 * left.double() @ right.double()).float()
        torch.testing.assert_close(add_product(x, 3.0, left, right, -0.7), wanted, atol=1e-5, rtol=1e-5)
        x, left, right = x.bfloat16(), left.bfloat16(), right.bfloat16()
        wanted = (3.0 * x.double() - 0.7 * (left @ right).double()).bfloat16()
        torch.testing.assert_close(add_product(x, 3.0, left, right, -0.7), wanted, atol=0, rtol=2**-7)

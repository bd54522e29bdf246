"""The model's parts against naive versions, and its promises about dtypes, caches and initialisation."""

from itertools import pairwise

import pytest
import torch

from nanochat_lit import GPT, GPTConfig
from nanochat_lit.common.errors import UserError
from nanochat_lit.model import KVCache
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.model.attention import WholeSequences
from nanochat_lit.model.export import load_model, save_model


def build(**changes):
    fields = {"sequence_len": 256, "vocab_size": 100, "n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 64}
    config = GPTConfig(**{**fields, "window_pattern": "SL", **changes})
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # the real start has zero projections, which would hide mistakes
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return model


def tokens(model, rows=2, length=200):
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_head": 1}, {"n_layer": 5, "window_pattern": "SSSL"}, {"n_layer": 1}, {"bigram_factor": 3}]
)
@pytest.mark.parametrize("cuts", [(1,), (150,), (50, 51, 120), (199,)])
def test_cached_forward_equals_full_forward(changes, cuts):
    model = build(**changes)
    inputs = tokens(model)
    cache = KVCache(model.config, 2, 256)
    edges = (0, *cuts, 200)
    with torch.no_grad():
        pieces = [model(inputs[:, a:b], kv_cache=cache) for a, b in pairwise(edges)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(inputs), atol=2e-5, rtol=1e-4)
    assert cache.position == 200


def test_smear_adds_a_gated_share_of_the_token_before():
    model = build()
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model._smear(x, WholeSequences({}))
        gate = model.smear_lambda * torch.sigmoid(x[..., :24] @ model.smear_gate.weight.T)
    torch.testing.assert_close(out[:, 0], x[:, 0])
    for t in range(1, 5):
        torch.testing.assert_close(out[:, t], x[:, t] + gate[:, t] * x[:, t - 1])


def test_padding_rows_are_never_predicted():
    model = build(vocab_size=100)
    assert model.lm_head.weight.shape[0] == 128
    assert model(tokens(model)).shape == (2, 200, 100)


def test_last_only_equals_the_last_position():
    model = build()
    inputs = tokens(model)
    torch.testing.assert_close(model(inputs, last_only=True), model(inputs)[:, -1:], atol=1e-5, rtol=1e-5)


def test_the_count_of_parameters_is_the_truth():
    for config in (GPTConfig.from_depth(5, vocab_size=1000), build(n_kv_head=2).config, build(bigram_factor=3).config):
        with torch.device("meta"):
            model = GPT(config)
        assert count_parameters(config).total == sum(p.numel() for p in model.parameters())


def test_meta_initialisation_leaves_nothing_unset():
    config = build(bigram_factor=3).config
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(float("nan"))
    model.init_weights(torch.Generator().manual_seed(5))
    direct = GPT(config)
    direct.init_weights(torch.Generator().manual_seed(5))
    expected = dict(direct.named_parameters()) | dict(direct.named_buffers())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, expected[name]), name


@torch.no_grad()
def test_initial_scales():
    config = GPTConfig.from_depth(4, vocab_size=4096, head_dim=64)
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(0))
    bound = (3 / 256) ** 0.5
    block = model.blocks[1]
    assert float(model.transformer["wte"].weight.std()) == pytest.approx(0.8, rel=0.01)
    assert float(model.lm_head.weight.std()) == pytest.approx(0.001, rel=0.01)
    assert float(block.attn.c_q.weight.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(block.mlp.c_fc.weight.abs().max()) == pytest.approx(0.4 * bound, rel=0.01)
    assert float(block.attn.c_proj.weight.abs().max()) == 0 == float(block.mlp.c_proj.weight.abs().max())
    torch.testing.assert_close(model.resid_lambdas.data, torch.tensor([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05]))
    torch.testing.assert_close(model.x0_lambdas.data, torch.tensor([0.2, 0.15, 0.1, 0.05]))
    assert model.backout_lambda.item() == pytest.approx(0.2)
    assert sorted(model.value_embeds) == ["1", "3"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)])
def test_low_precision_is_near_float32(dtype, tolerance):
    model = build()
    inputs = tokens(model, length=64)
    with torch.no_grad():
        exact = model(inputs)
        model.set_compute_dtype(dtype)
        rough = model(inputs)
    assert rough.dtype == torch.float32
    assert model.features(inputs).dtype == dtype
    assert model.lm_head.weight.dtype == torch.float32
    assert model.transformer["wte"].weight.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert (rough - exact).norm() < tolerance * exact.norm()


def test_context_overflow_names_the_limit():
    with pytest.raises(UserError, match="257 tokens do not fit the model's context of 256"):
        build()(torch.zeros(1, 257, dtype=torch.int64))


def test_unknown_reduction_is_named():
    model = build()
    with pytest.raises(UserError, match="'avg'"):
        model(tokens(model), tokens(model), reduction="avg")


def test_saved_model_is_the_same(tmp_path):
    model = build()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, compute_dtype="float32")
    assert torch.equal(loaded(tokens(model)), model(tokens(model)))


def test_weights_of_another_shape_are_refused(tmp_path):
    save_model(build(), tmp_path)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"n_layer": 3', '"n_layer": 4')
    )
    with pytest.raises(UserError, match=r"is not the model that its config.json describes"):
        load_model(tmp_path)


@pytest.mark.slow
def test_compiled_training_loss_and_gradients_equal_eager():
    model = build(n_kv_head=2, bigram_factor=3)
    inputs, targets = tokens(model, length=256), tokens(model, length=256).roll(-1, 1)
    eager = model(inputs, targets)
    expected = torch.autograd.grad(eager, list(model.parameters()))
    names = list(model.state_dict())
    model.compile_for_training()
    compiled = model(inputs, targets)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(compiled, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max() + 1e-6), rtol=1e-3)

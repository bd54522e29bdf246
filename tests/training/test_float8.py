"""`fp8: true`: what it needs, which layers it takes, and that evaluation and checkpoints stay as they are.

The products themselves need a GPU. Here a stand-in for torchao records what it is given; where the real torchao is installed,
its emulation of float8 runs on the CPU.
"""

import sys
import types
from importlib.util import find_spec

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.training import float8
from nanochat_lit.training.float8 import allows_float8, check_float8, convert_to_float8

WIDE = {"n_embd": 128, "n_head": 2, "n_kv_head": 2, "sequence_len": 32}


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "words"),
    [
        ("cpu", None, torch.bfloat16, "needs a CUDA GPU, this run is on cpu"),
        ("mps", None, torch.bfloat16, "mps"),
        ("cuda", (8, 0), torch.bfloat16, "this GPU has 8.0"),
        ("cuda", (8, 6), torch.bfloat16, "this GPU has 8.6"),
        ("cuda", (9, 0), torch.float16, "compute_dtype bfloat16, this run has float16"),
        ("cuda", (9, 0), torch.float32, "this run has float32"),
    ],
)
def test_hardware_that_cannot_is_told_in_one_line(device, capability, dtype, words, monkeypatch):
    monkeypatch.setattr(float8, "find_spec", lambda _: object())
    with pytest.raises(UserError, match=words) as error:
        check_float8(device, capability, dtype)
    assert len(str(error.value).splitlines()) == 1


def test_missing_torchao_is_told(monkeypatch):
    monkeypatch.setattr(float8, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install '\.\[fp8\]'"):
        check_float8("cuda", (8, 9), torch.bfloat16)
    monkeypatch.setattr(float8, "find_spec", lambda _: object())
    for capability in ((8, 9), (9, 0), (10, 0), (12, 0)):
        check_float8("cuda", capability, torch.bfloat16)


def test_a_run_on_cpu_ends_before_any_data_is_read(write_recipe, capsys, tmp_path):
    recipe = write_recipe(model={"fp8": True}, data={"path": str(tmp_path / "not read, so not missed")})
    assert cli.main(["fit", "--config", str(recipe)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error == ["error: fp8 needs a CUDA GPU, this run is on cpu; leave model.fp8 out"]


@pytest.mark.parametrize(
    ("shape", "allowed"),
    [((768, 768), True), ((128, 512), True), ((112, 512), False), ((768, 12), False), ((776, 768), False)],
)
def test_which_dimensions(shape, allowed):
    assert allows_float8(*shape) == allows_float8(*shape[::-1]) == allowed


class Twin(torch.nn.Linear):
    """Stands for torchao's layer: shares the weight, and shows in its output that it was used."""

    def forward(self, input):  # noqa: A002
        return 2 * torch.nn.functional.linear(input, self.weight.to(input.dtype))


@pytest.fixture
def fake_torchao(monkeypatch):
    def convert(linear, *, config):
        with torch.device("meta"):
            twin = Twin(linear.in_features, linear.out_features, bias=False)
        twin.weight = linear.weight
        return twin

    package, module = types.ModuleType("torchao"), types.ModuleType("torchao.float8")
    module.Float8LinearConfig = dict
    module.convert_to_float8_training = convert
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.float8", module)


def test_large_layers_are_converted_and_only_in_training(fake_torchao, random_model):
    model = random_model(**WIDE)
    tokens = torch.randint(320, (2, 32))
    with torch.no_grad():
        before = model(tokens)
    keys = list(model.state_dict())
    loss = model(tokens, tokens)
    converted, all_layers = convert_to_float8(model)
    assert (converted, all_layers) == (12, 13)  # the gate of the value embedding is too small
    assert model.lm_head._in_training == ()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), before, atol=0, rtol=0)
    assert abs((model(tokens, tokens) - loss).item()) > 1e-3
    assert list(model.state_dict()) == keys
    model(tokens, tokens).backward()
    assert all(block.mlp.c_fc.weight.grad is not None for block in model.blocks)


def test_a_narrow_model_is_left_alone(fake_torchao, random_model):
    assert convert_to_float8(random_model(n_embd=64)) == (0, 13)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")  # torchao warns about extensions that this torch has no use for
def test_torchao_emulated_on_cpu_is_near_bfloat16(random_model):
    """float8 keeps three or four bits of mantissa: the loss within 2%, the gradients' direction within a cosine of 0.98."""
    model = random_model(std=0.02, **WIDE).set_compute_dtype(torch.bfloat16)
    tokens = torch.randint(320, (2, 32))
    exact = model(tokens, tokens)
    exact.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    assert convert_to_float8(model, emulate=True)[0] == 12
    loss = model(tokens, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert loss.item() != exact.item()
    for name in ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_v.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.98

"""A variant of the architecture from a module of one's own: it trains, resumes, exports, reloads, caches and generates."""

import json
import sys

import pytest
import torch

from nanochat_lit import Engine, cli, load_export
from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPTConfig, KVCache
from nanochat_lit.model.accounting import count_parameters, flops_per_token
from nanochat_lit.model.architecture import TRUST_VARIABLE, build_model, model_class

VARIANT = "my_extension.SwiGLUGPT"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    with pytest.MonkeyPatch.context() as patch:
        from pathlib import Path

        patch.syspath_prepend(str(Path(__file__).parent))
        yield
        sys.modules.pop("my_extension", None)


@pytest.fixture(scope="module")
def run_dir(write_recipe, _importable):
    recipe = write_recipe(model={"architecture": VARIANT, "num_steps": 2})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert cli.main(["fit", "--config", str(recipe), "--trainer.max_steps", "4", "--ckpt_path", "last"]) == 0
    return recipe.parent / "run"


def test_it_trains_and_its_export_is_the_variant(run_dir):
    model, _ = load_export(run_dir / "export", compute_dtype="float32")
    assert type(model).__name__ == "SwiGLUGPT"
    assert json.loads((run_dir / "export" / "config.json").read_text())["architecture"] == VARIANT
    assert model.state_dict()["cap"] != 15.0, "the softcap was not trained"
    assert {name.rpartition(".")[0] for name in model.state_dict() if ".mlp." in name and ".0." in name} == {
        f"transformer.h.0.mlp.{part}" for part in ("c_gate", "c_fc", "c_proj")
    }
    assert model.blocks[0].mlp.c_proj.weight.abs().max() > 0


def test_cache_and_packed_weights_give_the_same_logits(run_dir):
    model, _ = load_export(run_dir / "export", compute_dtype="float32")
    packed, tokenizer = load_export(run_dir / "export", compute_dtype="float32", cast_weights=True)
    ids = torch.randint(0, tokenizer.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids)
        cache = KVCache(packed.config, batch_size=1, max_len=12, device="cpu", dtype=torch.float32)
        steps = [packed(ids[:, :5], kv_cache=cache)] + [packed(ids[:, t : t + 1], kv_cache=cache) for t in range(5, 12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=0)
    assert packed.decode_kernel is None
    (answer,) = Engine(packed, tokenizer).generate(ids[0].tolist(), max_new_tokens=4, temperature=0)
    assert len(answer) <= 4


def test_the_loss_is_the_plain_formula(run_dir):
    model, tokenizer = load_export(run_dir / "export", compute_dtype="float32")
    ids = torch.randint(0, tokenizer.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    expected = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss, losses = model.loss_and_token_losses(inputs, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model(inputs, targets, "none"), losses)
    (expected_gradient,) = torch.autograd.grad(expected, model.cap)
    (gradient,) = torch.autograd.grad(loss, model.cap)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


def test_parameters_are_counted():
    config = GPTConfig.from_depth(2, vocab_size=320, sequence_len=64, head_dim=32, architecture=VARIANT)
    model = build_model(config, is_trusted=True)
    counts = count_parameters(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    in_blocks = sum(parameter.numel() for block in model.blocks for parameter in block.parameters())
    assert counts.transformer_matrices == in_blocks
    assert flops_per_token(config) > 6 * in_blocks


def test_code_of_others_is_not_imported_for_an_export(run_dir, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_extension")
    with pytest.raises(UserError, match=f"{TRUST_VARIABLE}={VARIANT}"):
        load_export(run_dir / "export")
    assert "my_extension" not in sys.modules
    monkeypatch.setenv(TRUST_VARIABLE, VARIANT)
    assert type(load_export(run_dir / "export")[0]).__name__ == "SwiGLUGPT"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "not a class"),
        ("no_such_module.GPT", "cannot be imported"),
        ("my_extension.Nothing", "cannot be imported"),
        ("swiglu", "not a class"),
        ("pathlib.Path", "not a subclass of"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        model_class(name, is_trusted=True)


@pytest.mark.parametrize("name", ["", "my extension", "a..b", "../x", 3])
def test_a_config_holds_a_class_path(name):
    with pytest.raises(UserError, match="architecture"):
        GPTConfig(architecture=name)

"""A variant of the architecture from a module of one's own: it trains, resumes, exports, reloads, caches, generates,
and goes to Hugging Face and back."""

import json
import subprocess
import sys

import pytest
import torch

from nanochat_lit import Engine, cli, export_hf, import_hf, load_export, save_export
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.recipes import import_class
from nanochat_lit.engine.hf_code import code_files
from nanochat_lit.model import GPTConfig, KVCache
from nanochat_lit.model.accounting import count_parameters, flops_per_token
from nanochat_lit.model.architecture import TRUST_VARIABLE, build_model, model_class

VARIANT = "my_model.SwiGLUGPT"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    with pytest.MonkeyPatch.context() as patch:
        from pathlib import Path

        patch.syspath_prepend(str(Path(__file__).parent))
        yield
        sys.modules.pop("my_model", None)


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
    monkeypatch.delitem(sys.modules, "my_model")
    with pytest.raises(UserError, match=f"{TRUST_VARIABLE}={VARIANT}"):
        load_export(run_dir / "export")
    assert "my_model" not in sys.modules
    monkeypatch.setenv(TRUST_VARIABLE, VARIANT)
    assert type(load_export(run_dir / "export")[0]).__name__ == "SwiGLUGPT"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "not a class"),
        ("no_such_module.GPT", "cannot be imported"),
        ("my_model.Nothing", "cannot be imported"),
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


def test_it_goes_to_hugging_face_and_back(run_dir, tmp_path, monkeypatch):
    """The folder carries the variant's own file and loads where neither that nor this package can be imported."""
    pytest.importorskip("transformers", reason="needs the hf extra")
    model, tokenizer = load_export(run_dir / "export", compute_dtype="float32")
    with torch.no_grad():  # after four steps logits are near 0, where neither the MLP nor the softcap shows
        for block in model.blocks:
            block.mlp.c_proj.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        model.lm_head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(2))
        model.cap.fill_(3.0)
    export = tmp_path / "export"
    save_export(export, model, tokenizer)
    export_hf(export, tmp_path / "hf")
    assert "from .transformer import Transformer as GPT" in (tmp_path / "hf" / "my_model.py").read_text("utf-8")
    ids = torch.randint(0, tokenizer.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids)
    torch.save(ids, tmp_path / "ids.pt")
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    torch.testing.assert_close(found["logits"], expected, atol=1e-4, rtol=0)
    prompt = ids[0, :5].tolist()
    (answer,) = Engine(model, tokenizer).generate(prompt, max_new_tokens=6, temperature=0)
    assert found["generated"][0, 5 : 5 + len(answer)].tolist() == answer
    with torch.no_grad():
        model.cap.fill_(2.9)
        assert (model(ids) - expected).abs().max() > 0.01, "another softcap would not be noticed"
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (export / "config.json").read_bytes()
    monkeypatch.delitem(sys.modules, "my_model")
    with pytest.raises(UserError, match=f"{TRUST_VARIABLE}={VARIANT}"):
        import_hf(tmp_path / "hf", tmp_path / "back")


ELSEWHERE = """
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.modules["nanochat_lit"] = sys.modules["my_model"] = None  # an import of them would fail
folder = Path(sys.argv[1])
ids = torch.load(folder / "ids.pt", weights_only=True)
model = AutoModelForCausalLM.from_pretrained(folder / "hf", trust_remote_code=True).eval()
with torch.no_grad():
    found = {"logits": model(ids).logits, "generated": model.generate(ids[:1, :5], do_sample=False, max_new_tokens=6)}
torch.save(found, folder / "found.pt")
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import my_helpers", "imports my_helpers"),
        ("from lightning import Trainer", "imports lightning"),
        ("from nanochat_lit.model.loss import softcapped_cross_entropy", "imports nanochat_lit.model.loss"),
        ("from . import helpers", "imports [.], which"),
    ],
)
def test_a_file_that_the_folder_cannot_carry(line, message, tmp_path, monkeypatch):
    path = tmp_path / "variant.py"
    path.write_text(f"from nanochat_lit import GPT\nif False:\n    {line}\n\nclass Own(GPT):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "variant", raising=False)
    variant = import_class("variant.Own", "architecture")
    with pytest.raises(UserError, match=message):
        code_files(variant)
    sys.modules.pop("variant")

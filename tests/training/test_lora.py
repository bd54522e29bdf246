"""LoRA: only the adapter trains, the export has it merged, and peft reads its files."""

import csv
import json
import re
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.adapter import save_adapter
from nanochat_lit.engine.export import load_export, save_export
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.model.lora import LoRA, add_lora, merged

RANK4 = ["--model.lora.rank", "4", "--model.lora.alpha", "12"]


@pytest.fixture
def tuned(sft_recipe):
    """The folder of an SFT run with an adapter."""
    assert cli.main(["fit", "--config", str(sft_recipe), "--checkpoint_every", "2", *RANK4]) == 0
    return sft_recipe.parent / "sft"


@pytest.fixture
def adapted(random_model, tokenizer, tmp_path):
    """A model whose adapter changes something, its base as an export, and the adapter's folder."""

    def make(lora, **fields):
        model = random_model(vocab_size=tokenizer.vocab_size, **fields)
        save_export(tmp_path / "base", model, tokenizer)
        add_lora(model, lora)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, std=0.05)
        save_adapter(tmp_path / "adapter", model, lora, tmp_path / "base")
        return model, tmp_path / "base", tmp_path / "adapter"

    return make


def losses(run):
    rows = csv.DictReader((run / "metrics.csv").read_text("utf-8").splitlines())
    return [float(row["train_loss"]) for row in rows if row["train_loss"]]


def test_the_formula(random_model):
    """A layer's output against the definition, a fresh adapter changes nothing, and what else trains: nothing."""
    model = random_model(vocab_size=64)
    ids = torch.randint(64, (2, 9))
    before = model(ids)
    count = add_lora(model, LoRA(rank=3, alpha=6.0, targets=["c_q", "mlp"]))
    assert torch.equal(model(ids), before)
    trained = {name.split(".", 3)[3] for name, part in model.named_parameters() if part.requires_grad}
    assert trained == {
        f"{layer}.{part}" for layer in ("attn.c_q", "mlp.c_fc", "mlp.c_proj") for part in ("lora_A", "lora_B")
    }
    assert count == 3 * model.config.n_layer
    layer = model.blocks[0].attn.c_q
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 5, layer.in_features)
    expected = torch.einsum("btc,oc->bto", x, layer.weight + 6.0 / 3 * layer.lora_B @ layer.lora_A)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_merged_is_the_same_model(adapted, tokenizer):
    """The model with an adapter, its merged export, and the base with the adapter's files loaded."""
    model, base, folder = adapted(LoRA(rank=4))
    ids = torch.randint(tokenizer.vocab_size, (2, 12))
    save_export(base.parent / "merged", model, tokenizer)
    with torch.no_grad():
        expected = model(ids)
        whole = load_export(base.parent / "merged", "cpu", "float32")[0]
        loaded = load_export(base, "cpu", "float32", adapter=str(folder))[0]
        plain = load_export(base, "cpu", "float32")[0](ids)
        torch.testing.assert_close(whole(ids), expected, atol=2e-5, rtol=0)
    for (name, one), (_, other) in zip(whole.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert (plain - expected).abs().max() > 0.1


def test_a_run(tuned, sft_recipe):
    """Losses fall, the base's weights stay, checkpoint and export are the same model, and a resume repeats the rest."""
    base = json.loads((tuned / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    export, last = (
        load_export(tuned / part, "cpu", "float32")[0].state_dict() for part in ("export", "checkpoints/last.ckpt")
    )
    start = load_export(base, "cpu", "float32")[0].state_dict()
    for name, tensor in export.items():
        assert torch.equal(tensor, last[name]), name
        assert torch.equal(tensor, start[name]) == (".c_" not in name), name
    again = [
        *RANK4,
        "--run_dir",
        str(tuned.parent / "again"),
        "--ckpt_path",
        str(tuned / "checkpoints" / "step000002.ckpt"),
    ]
    assert cli.main(["fit", "--config", str(sft_recipe), *again]) == 0
    assert losses(tuned.parent / "again") == losses(tuned)[2:]
    one, other = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (tuned, tuned.parent / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_adapter_is_not_resumed(tuned, sft_recipe, capsys):
    words = [
        "fit",
        "--config",
        str(sft_recipe),
        "--run_dir",
        str(tuned.parent / "other"),
        "--ckpt_path",
        str(tuned / "checkpoints" / "last.ckpt"),
    ]
    assert cli.main([*words, "--model.lora.rank", "2"]) == 2
    assert "the checkpoint was trained with model.lora {'rank': 4" in capsys.readouterr().err


def test_rl_trains_an_adapter(write_rl_recipe, capsys):
    recipe = write_rl_recipe(model={"num_steps": 2, "lora": {"rank": 2}})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert re.search(r"lora +rank 2 on 12 matrices, 2,304 trained parameters", capsys.readouterr().err)
    assert (recipe.parent / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_terminal_loads_one(tuned, capsys):
    base = json.loads((tuned / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    answers = []
    for words in (["--model", base, "--adapter", str(tuned / "adapter")], ["--model", str(tuned / "export")]):
        assert cli.main(["chat", *words, "-p", "hello", "--temperature", "0", "--max_new_tokens", "8"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_the_server_loads_one(adapted):
    pytest.importorskip("litserve", reason="needs pip install '.[serve]'")
    from nanochat_lit.serve.api import ChatAPI, ServeSettings, fingerprint_of

    model, base, folder = adapted(LoRA(rank=2))
    settings = ServeSettings(model=str(base), name="m", num_slots=1, compute_dtype="float32", adapter=str(folder))
    api = ChatAPI(settings, fingerprint_of(settings))
    api.setup("cpu")
    assert api.failure is None
    with torch.no_grad():
        ids = torch.tensor([[1, 5, 7]])
        served = api.scheduler.engine.model
        torch.testing.assert_close(served(ids), model(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ({"rank": 0}, "lora.rank is 0; it must be positive"),
        ({"alpha": -1}, "lora.alpha is -1; it must be positive"),
        ({"targets": []}, "lora.targets is empty"),
        ({"targets": ["q_proj"]}, "lora.targets has 'q_proj', which is not a part of this model; use attn, c_fc"),
        ({"rank": 1000}, "lora.rank 1000 exceeds every matrix"),
        ({"rank": 1000, "targets": ["c_q"]}, "lora.rank is 1000, but the smaller side of 0.attn.c_q is"),
    ],
)
def test_settings(random_model, lora, why):
    with pytest.raises(UserError, match=why):
        add_lora(random_model(vocab_size=64), LoRA(**lora))


def change_config(**values):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def change_tensors(function):
    def change(folder):
        path = folder / "adapter_model.safetensors"
        save_file(dict(function(load_file(path))), path)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (change_config(peft_type="IA3"), "does not describe a LoRA adapter"),
        (change_config(use_dora=True), "has use_dora True, which cannot be merged"),
        (change_config(r="4"), "has r '4' and lora_alpha 16.0; both are positive numbers"),
        (change_config(nanochat_lit={"base_sha256": "0"}), "was trained on other weights than"),
        (change_tensors(lambda found: {"x": found.popitem()[1]}), "x (torch.float32) is not a factor"),
        (change_tensors(lambda found: list(found.items())[1:]), "has factors of shapes"),
        (change_tensors(lambda found: {name: part[:1].contiguous() for name, part in found.items()}), "has factors of shapes"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"?"), "cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "is not an adapter: adapter_config.json is missing"),
    ],
)  # fmt: skip
def test_adapters_of_others_are_checked(adapted, change, why):
    _, base, folder = adapted(LoRA(rank=4))
    change(folder)
    with pytest.raises(UserError) as caught:
        load_export(base, "cpu", "float32", adapter=str(folder))
    assert why in str(caught.value)


def test_factors_without_a_matrix_are_refused(adapted):
    model, base, _ = adapted(LoRA(rank=4))
    state = model.state_dict()
    odd = {name: tensor for name, tensor in state.items() if not name.endswith("0.attn.c_q.lora_B")}
    assert [name for name in merged(odd) if "lora" in name] == [
        f"transformer.h.0.attn.c_q.lora_{part}" for part in ("A", "scale")
    ]
    save_file({name: tensor.contiguous() for name, tensor in odd.items()}, base / "model.safetensors")
    with pytest.raises(UserError, match="is not the model that its config"):
        load_export(base, "cpu", "float32")


PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)
model = PeftModel.from_pretrained(model, sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[3])).logits, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["nanochat", "qwen3"])
def test_peft_reads_them(adapted, make_environment, tokenizer, tmp_path, architecture):
    """Logits of peft's model on the exported folder against ours with the adapter."""
    program = make_environment("peft", ["peft", "transformers", "safetensors"], is_on_top=True)
    model, base, folder = adapted(LoRA(rank=4), architecture=architecture)
    export_hf(base, tmp_path / "hf")
    ids = torch.randint(tokenizer.vocab_size, (2, 12))
    torch.save(ids, tmp_path / "ids.pt")
    command = [program / "python", "-c", PEFT, tmp_path / "hf", folder, tmp_path / "ids.pt"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "ids.pt"), model(ids).float(), atol=1e-4, rtol=0)

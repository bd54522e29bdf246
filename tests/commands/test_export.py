"""`export` and `import-hf`, for models of ours and of nanochat."""

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export, save_export
from nanochat_lit.tokenizer import render_for_completion


@pytest.fixture(params=["ours", "nanochat"])
def exported(request, tmp_path, random_model, tokenizer, nanochat_folder):
    if request.param == "ours":
        save_export(tmp_path / "export", random_model(), tokenizer)
    else:
        folder = nanochat_folder(random_model())
        assert cli.main(["import-nanochat", str(folder), "--out", str(tmp_path / "export")]) == 0
    argv = ["export", "--format", "hf", "--model", str(tmp_path / "export"), "--out", str(tmp_path / "hf")]
    assert cli.main(argv) == 0
    return tmp_path / "export", tmp_path / "hf"


def test_there_and_back(exported, tmp_path):
    export, folder = exported
    assert cli.main(["import-hf", str(folder), "--out", str(tmp_path / "back")]) == 0
    names = sorted(path.name for path in export.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "back").iterdir())
    for name in set(names) - {"model.safetensors"}:
        assert (export / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    before, after = (load_export(path, "cpu", "float32")[0].state_dict() for path in (export, tmp_path / "back"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_transformers_answers_as_the_engine(exported):
    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    export, folder = exported
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ours, tokenizer = load_export(export, "cpu", "float32")
    messages = [{"role": "user", "content": "the cat 12?"}]
    inputs = theirs.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = render_for_completion(tokenizer, {"messages": messages})
    assert inputs["input_ids"].tolist() == [prompt]
    found = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, len(prompt) :].tolist()
    (expected,) = Engine(ours, tokenizer).generate(prompt, max_new_tokens=12, temperature=0)
    special = set(tokenizer.special_ids.values())
    length = next((place for place, token_id in enumerate(expected) if token_id in special), len(expected))
    assert length > 3
    assert found[:length] == expected[:length]


def test_mistakes(tmp_path, capsys):
    assert cli.main(["export", "--format", "onnx", "--model", "x", "--out", "y"]) == 2
    assert "--format" in capsys.readouterr().err
    assert cli.main(["export", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "y")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert cli.main(["import-hf", str(tmp_path), "--out", str(tmp_path / "y")]) == 2
    assert "config.json: no such file" in capsys.readouterr().err


def test_the_card_of_a_checkpoint_has_the_recipe(pretrained, tmp_path):
    checkpoint = pretrained / "checkpoints" / "step000002.ckpt"
    words = ["export", "--format", "hf", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "hf")]
    assert cli.main(words) == 0
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    assert "fit --config recipe.yaml" in card
    assert "tokens_per_step: 512" in card
    assert "| steps | 2 |" in card

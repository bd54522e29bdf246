"""An imported nanochat model is an export like any other: it is measured, chats, serves and learns."""

import json

import pytest
import torch
import yaml

from nanochat_lit import cli
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer


@pytest.fixture
def imported(tmp_path, nanochat_folder, random_model, capsys):
    folder = nanochat_folder(
        random_model(sequence_len=128), prefix="_orig_mod.", drop=["_orig_mod.x0_lambdas", "x0_lambdas"]
    )
    assert cli.main(["import-nanochat", str(folder), "--out", str(tmp_path / "export")]) == 0
    out = capsys.readouterr().out
    assert "note: x0_lambdas is missing" in out
    assert out.splitlines()[0] == "step 7: 2 layers, width 32, context 128, 320 tokens"
    return tmp_path / "export"


def test_it_evaluates_and_chats(imported, text_folder, capsys):
    assert (
        cli.main(["evaluate", "bpb", "--model", str(imported), "--data", str(text_folder), "--max_docs", "9", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["bpb"] > 0
    assert cli.main(["chat", "-m", str(imported), "-p", "hello", "--temperature", "0", "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out


def test_provenance(imported):
    provenance = json.loads((imported / "provenance.json").read_text())
    assert provenance["stage"] == "imported from nanochat"
    assert provenance["hyper_parameters"]["matrix_lr"] == 0.02
    assert any(note.startswith("x0_lambdas is missing") for note in provenance["notes"])


def test_it_is_fine_tuned(imported, sft_recipe, tmp_path):
    recipe = yaml.safe_load(sft_recipe.read_text())
    recipe["model"]["init_args"]["base"] = str(imported)
    sft_recipe.write_text(yaml.safe_dump(recipe))
    assert cli.main(["fit", "--config", str(sft_recipe)]) == 0
    model, tokenizer = load_export(tmp_path / "sft" / "export", "cpu", "float32")
    before, _ = load_export(imported, "cpu", "float32")
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
    (token_ids,) = Engine(model, tokenizer).generate([tokenizer.bos_id], max_new_tokens=3, temperature=0)
    assert len(token_ids) <= 3


def test_where_the_tokenizer_is_looked_for(tmp_path, nanochat_folder, random_model, capsys):
    folder = tmp_path / "base" / "base_checkpoints" / "d2"
    folder.mkdir(parents=True)
    nanochat_folder(random_model(), folder=folder)
    (tmp_path / "base" / "tokenizer").mkdir()
    (folder / "tokenizer.pkl").rename(tmp_path / "base" / "tokenizer" / "tokenizer.pkl")
    assert cli.main(["import-nanochat", "--folder", str(folder), "--out", str(tmp_path / "export")]) == 0
    (tmp_path / "base" / "tokenizer" / "tokenizer.pkl").rename(tmp_path / "tokenizer.pkl")
    assert cli.main(["import-nanochat", str(folder), "--out", str(tmp_path / "export")]) == 2
    assert "give its folder with --tokenizer" in capsys.readouterr().err
    argv = ["import-nanochat", str(folder), "--out", str(tmp_path / "export"), "--tokenizer", str(tmp_path)]
    assert cli.main(argv) == 0


def test_a_folder_that_is_not_there(tmp_path, capsys):
    """Its absence is said, not that of a tokenizer in it."""
    assert cli.main(["import-nanochat", str(tmp_path / "nowhere"), "--out", str(tmp_path / "export")]) == 2
    assert "nowhere" in (error := capsys.readouterr().err)
    assert "tokenizer" not in error


def test_a_tokenizer_of_another_model_is_refused(tmp_path, nanochat_folder, random_model, capsys):
    folder = nanochat_folder(random_model(vocab_size=384))
    assert cli.main(["import-nanochat", str(folder), "--out", str(tmp_path / "export")]) == 2
    assert "vocabulary of 384, but the tokenizer of 320" in capsys.readouterr().err

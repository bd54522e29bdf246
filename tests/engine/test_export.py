import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import export_folder
from nanochat_lit.engine.export import about_model, load_export, load_generation_defaults, read_config, save_export
from nanochat_lit.engine.export_folder import EXPORT_FILES
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer

MakeModel = Callable[..., GPT]


@pytest.fixture
def folder(tmp_path: Path, random_model: MakeModel, tokenizer: Tokenizer) -> Path:
    save_export(tmp_path / "runs" / "export", random_model(), tokenizer, {"temperature": 0.1}, {"recipe": "x"})
    return tmp_path / "runs" / "export"


def test_round_trip(folder: Path, random_model: MakeModel, tokenizer: Tokenizer) -> None:
    assert {path.name for path in folder.iterdir()} == set(EXPORT_FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["export"]  # nothing temporary is left
    model, loaded = load_export(folder, "cpu", "float32")
    inputs = torch.randint(0, 320, (2, 30))
    assert torch.equal(model(inputs), random_model()(inputs))
    assert loaded.encode("the cat 12") == tokenizer.encode("the cat 12")
    assert load_generation_defaults(folder) == SamplingParams(temperature=0.1, top_k=50)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance == {"recipe": "x", "tokenizer_fingerprint": tokenizer.fingerprint}


def test_replaces_an_older_export_whole(folder: Path, random_model: MakeModel, tokenizer: Tokenizer) -> None:
    save_export(folder, random_model(seed=1), tokenizer)
    inputs = torch.randint(0, 320, (1, 9))
    assert torch.equal(load_export(folder, "cpu", "float32")[0](inputs), random_model(seed=1)(inputs))
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_a_failed_save_leaves_the_old_one(
    folder: Path, random_model: MakeModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export_folder, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        save_export(folder, random_model(seed=1), tokenizer)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_never_replaces_a_folder_that_holds_other_things(
    tmp_path: Path, random_model: MakeModel, tokenizer: Tokenizer
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        save_export(tmp_path, random_model(), tokenizer)
    with pytest.raises(UserError, match="is a file"):
        save_export(tmp_path / "thesis.txt", random_model(), tokenizer)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("name", EXPORT_FILES)
def test_missing_and_broken_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{name}|generation|fingerprint") as caught:
        load_generation_defaults(folder) if name == "generation.json" else load_export(folder, "cpu")
    assert str(caught.value).count("\n") <= 1
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} missing"):
        load_export(folder, "cpu")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_export(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a complete export"):
        load_export(tmp_path)


def test_files_of_another_export_are_refused(
    folder: Path, tmp_path: Path, random_model: MakeModel, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match="vocabulary of 384, but the tokenizer of 320"):
        save_export(tmp_path / "a", random_model(vocab_size=384), tokenizer)
    with pytest.raises(UserError, match="unknown generation settings"):
        save_export(tmp_path / "a", random_model(), tokenizer, {"top_p": 0.9})
    Tokenizer.train(["another text altogether, of foxes and dogs"] * 40, vocab_size=300).write_files(folder)
    with pytest.raises(UserError, match="another export"):
        load_export(folder, "cpu")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path, random_model, tokenizer, umask):
    """So that the container's user can read what another has written."""
    before = os.umask(umask)
    try:
        save_export(tmp_path / "export", random_model(), tokenizer)
        export_hf(tmp_path / "export", tmp_path / "hf")
    finally:
        os.umask(before)
    for path in [*(tmp_path / "export").rglob("*"), *(tmp_path / "hf").rglob("*")]:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"top_k": True}, {"max_new_tokens": "64"}, {"temperature": math.nan}]
)
def test_settings_that_no_chat_would_take_are_not_exported(tmp_path, random_model, tokenizer, settings):
    with pytest.raises(UserError, match=" is "):
        save_export(tmp_path / "export", random_model(), tokenizer, settings)
    assert not (tmp_path / "export").exists()


def test_about_a_model(folder: Path) -> None:
    run = folder.parent
    config = read_config(folder)
    size = about_model(folder, config)
    assert re.fullmatch(r"2 layers of width 32, 0\.0\d+ million parameters, context 64 tokens\.", size)
    path = folder / "provenance.json"
    known = json.loads(path.read_text())

    def about(**fields: object) -> str:
        path.write_text(json.dumps({**known, "stage": "sft", "tokens": 3_686_400, **fields}))
        return about_model(folder, config)

    assert about() == f"{size} Last stage of training: sft, 3.69 million tokens."
    for init_args, data in (
        ("{path: a/data/sft}", "data/sft"),
        ("{source: {class_path: x.hub.ClimbMix}}", "ClimbMix"),
        ("{train: {chat: {class_path: x.Y}, gsm8k: {class_path: x.Z}}}", "chat, gsm8k"),
        ("{train: {class_path: x.GSM8K}}", "GSM8K"),
    ):
        (run / "config.yaml").write_text(f"data:\n  init_args: {init_args}\n")
        assert about() == f"{size} Last stage of training: sft, 3.69 million tokens, on {data}."
    assert about(data="the tiny world").endswith(", on the tiny world.")
    assert "Note: this is a base model" in about(stage="pretrain")
    for broken in ("[", "data: 3", "data: {init_args: {path: 3}}", ""):
        (run / "config.yaml").write_text(broken)
        assert about() == f"{size} Last stage of training: sft, 3.69 million tokens."

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import export
from nanochat_lit.engine.export import EXPORT_FILES, load_export, load_generation_defaults, save_export
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
    assert load_generation_defaults(folder) == {"temperature": 0.1, "top_k": 50, "max_new_tokens": 256}
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

    monkeypatch.setattr(export, "write_json", fail)
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
    with pytest.raises(UserError, match="there is no folder"):
        load_export(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a whole export"):
        load_export(tmp_path)


def test_files_of_another_export_are_refused(
    folder: Path, tmp_path: Path, random_model: MakeModel, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match="vocabulary of 384 and the tokenizer one of 320"):
        save_export(tmp_path / "a", random_model(vocab_size=384), tokenizer)
    with pytest.raises(UserError, match="unknown generation settings"):
        save_export(tmp_path / "a", random_model(), tokenizer, {"top_p": 0.9})
    Tokenizer.train(["another text altogether, of foxes and dogs"] * 40, vocab_size=300).save(folder)
    with pytest.raises(UserError, match="another export"):
        load_export(folder, "cpu")

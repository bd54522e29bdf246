"""push, pull and hf:// names against a hub on this machine, with the hub's own client."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from nanochat_lit import cli
from nanochat_lit.commands import evaluate
from nanochat_lit.commands import ui as ui_command
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import hub as hub_module
from nanochat_lit.engine.export import find_model, load_export, save_export
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.training.sft import SFTModule

TOKEN = "hf_writer"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # the hub's client of its own library


@pytest.fixture
def hub(tmp_path, monkeypatch, run_server):
    """The hub, without a token; the client's and our own cache are empty."""
    server = run_server(Path(__file__).with_name("model_hub_server.py"), tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    values = {"ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN_PATH": str(tmp_path / "token")}
    values["HUGGINGFACE_CO_URL_TEMPLATE"] = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {**values, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr(hub_module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)
    hub_module.fetch_model.cache_clear()
    disable_progress_bars()
    yield server
    enable_progress_bars()
    hub_module.fetch_model.cache_clear()


@pytest.fixture(scope="session")
def export(tmp_path_factory, random_model, tokenizer):
    return write_export(tmp_path_factory, random_model(architecture="qwen3"), tokenizer)


@pytest.fixture(scope="session")
def other_export(tmp_path_factory, random_model, tokenizer):
    """Of the default architecture."""
    return write_export(tmp_path_factory, random_model(), tokenizer)


def write_export(tmp_path_factory, model, tokenizer):
    folder = tmp_path_factory.mktemp("run") / "export"
    save_export(
        folder, model, tokenizer, {"temperature": 0.5}, {"stage": "sft", "steps": 3, "planned_steps": 3, "val_bpb": 1.5}
    )
    recipe = {"model": {"init_args": {"depth": 2}}, "data": {"init_args": {"path": "/home/me/books"}}}
    (folder.parent / "config.yaml").write_text(yaml.safe_dump(recipe))
    scores = {"metric": "core", "scores": {"paper": {"value": 0.1, "low": 0.05, "high": 0.15}}}
    (folder.parent / "export_evaluation").mkdir()
    (folder.parent / "export_evaluation" / "core.json").write_text(json.dumps(scores))
    return folder


def main(capsys, *words):
    status = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def same(export, other):
    (mine, words), (theirs, other_words) = load_export(export, "cpu", "float32"), load_export(other, "cpu", "float32")
    assert words.fingerprint == other_words.fingerprint
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())
    assert (export / "generation.json").read_text() == (Path(find_model(other)) / "generation.json").read_text()


@pytest.mark.parametrize("form", ["hf", "export"])
@pytest.mark.parametrize("which", ["export", "other_export"])
def test_what_was_pushed_is_pulled(hub, request, which, capsys, monkeypatch, form):
    export = request.getfixturevalue(which)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    status, out, error = main(capsys, "push", export, "me/tiny", "--format", form)
    assert status == 0, error
    assert f"{hub.url}/me/tiny/commit/" in out
    assert hub.messages == ["nanochat-lit push"]
    files = hub.models["me/tiny"].branches["main"]
    assert ("tokenizer_config.json" in files) == (form == "hf")
    card = files["README.md"].decode()
    for expected in (
        "# me/tiny",
        "## Limits",
        "0.1000 (95%: 0.0500 to 0.1500)",
        "path: books",
        "fit --config recipe.yaml",
    ):
        assert expected in card
    assert ("from_pretrained" in card) == (form == "hf")
    assert yaml.safe_load(card.split("---")[1])["library_name"] == ("transformers" if form == "hf" else "nanochat-lit")
    monkeypatch.delenv("HF_TOKEN")
    assert main(capsys, "pull", "me/tiny")[0] == 0
    same(export, Path("runs/tiny/export"))
    same(export, "hf://me/tiny")


def test_a_second_push_removes_files_of_the_first_and_no_others(hub, export, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(capsys, "push", export, "me/tiny")[0] == 0
    files = hub.models["me/tiny"].branches["main"]
    files["picture.png"] = b"theirs"
    status, _, error = main(capsys, "push", export, "me/tiny", "--format", "export")
    assert status == 0, error
    assert "picture.png" in files
    assert set(files) - {"picture.png", "README.md"} == {path.name for path in export.iterdir()}


def test_a_folder_with_other_files_is_not_replaced(hub, export, capsys, tmp_path):
    export_hf(export, tmp_path / "hf")
    hub.add("me/tiny", tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "novel.txt").write_text("mine")
    status, _, error = main(capsys, "pull", "me/tiny", "--out", tmp_path / "out")
    assert status == 2
    assert error.startswith(f"error: {tmp_path / 'out'} contains novel.txt, which is not part of an export")


def test_a_full_disk_is_not_blamed_on_the_network(hub, export, capsys, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "hub"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    status, _, error = main(capsys, "pull", "me/tiny")
    assert (status, error.count("\n")) == (2, 1)
    assert "the disk is full" in error


def test_a_dry_run_lists_what_would_be_sent(hub, export, capsys):
    status, out, _ = main(capsys, "push", export, "me/tiny", "--dry-run")
    assert status == 0
    assert hub.seen == []
    *lines, total = out.splitlines()
    sizes = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in lines}
    assert sizes["nanochat_lit/tokenizer.model"] == (export / "tokenizer.model").stat().st_size
    assert total.split()[0] == f"{sum(sizes.values()):,}"
    assert "to hf://me/tiny; nothing was sent" in total


def test_revisions_and_private_models(hub, export, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(capsys, "push", export, "me/tiny", "--private", "--revision", "v1")[0] == 0
    model = hub.models["me/tiny"]
    assert model.private
    assert model.branches["main"] == {}
    assert main(capsys, "pull", "me/tiny", "--revision", "v1", "--out", tmp_path / "a")[0] == 0
    assert main(capsys, "pull", "me/tiny@v1", "--out", tmp_path / "b")[0] == 0
    same(tmp_path / "a", tmp_path / "b")
    same(tmp_path / "a", "hf://me/tiny@v1")
    status, _, error = main(capsys, "pull", "me/tiny@v2")
    assert (status, error) == (2, f"error: me/tiny has no revision 'v2' on {hub.url}\n")
    model.private = False
    status, _, error = main(capsys, "push", export, "me/tiny", "--private")
    assert status == 2
    assert "me/tiny exists and is public" in error
    assert model.branches["main"] == {}


def test_a_model_is_downloaded_once_per_commit_and_used_offline(hub, other_export, tmp_path, monkeypatch):
    export_hf(other_export, tmp_path / "hf")
    hub.add("me/tiny", tmp_path / "hf")
    first = find_model("hf://me/tiny")
    assert first.name == "tiny"
    assert not any(path.endswith(".py") for _, path, _ in hub.seen), "code is not downloaded"
    num_seen = len(hub.seen)
    assert find_model("hf://me/tiny") == first
    assert len(hub.seen) == num_seen
    hub_module.fetch_model.cache_clear()  # another process
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_model("hf://me/tiny") == first
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.models["me/tiny"].branches["main"]["nanochat_lit/provenance.json"] = b'{"stage": "later"}'
    hub_module.fetch_model.cache_clear()
    second = find_model("hf://me/tiny")
    assert second != first
    assert json.loads((second / "provenance.json").read_text())["stage"] == "later"


ERRORS = [
    (
        "hf://me/nothing",
        "me/nothing does not exist on {url}, or access is denied; check the name; if it is private, run",
    ),
    ("hf://me/secret", "me/secret does not exist on {url}, or access is denied; check the name; if it is private, run"),
    ("hf://me/gated", "me/gated requires permission: request it at {url}/me/gated, then set HF_TOKEN"),
    ("hf://me/other", "hf://me/other is not a model that nanochat-lit can read: it has the model type 'llama'"),
    ("hf://me/pickled", "hf://me/pickled is not a model that nanochat-lit can read: model.safetensors is missing"),
    ("hf://me/empty", "hf://me/empty is not a model that nanochat-lit can read: config.json: no such file"),
    ("hf://me/module", "the model's architecture is antigravity.Model, code outside nanochat-lit"),
    ("hf://me/list", "config.json does not hold a model config"),
    ("hf://me/index", "model.safetensors.index.json has no weight_map"),
    ("hf://me/known", "provenance.json does not contain a JSON object"),
    ("hf://me", "'me' is not the name of a model on the hub; give OWNER/NAME"),
    ("hf://../..", "'../..' is not the name of a model on the hub; give OWNER/NAME"),
]


@pytest.fixture
def odd_models(hub, other_export, tmp_path):
    """Models that are not there, not allowed, or not what their name suggests."""
    export_hf(other_export, tmp_path / "hf")
    for name in ("secret", "gated", "other", "pickled", "empty", "module", "list", "index", "known"):
        hub.add(f"me/{name}", tmp_path / "hf", private=name == "secret", gated=name == "gated")
    files = {name.split("/")[1]: model.branches["main"] for name, model in hub.models.items()}
    config = json.loads(files["module"]["config.json"])
    files["other"]["config.json"] = b'{"model_type": "llama"}'
    files["pickled"]["pytorch_model.bin"] = files["pickled"].pop("model.safetensors")
    files["empty"].clear()
    files["empty"]["README.md"] = b"nothing"
    files["module"]["config.json"] = json.dumps({**config, "architecture": "antigravity.Model"}).encode()
    files["list"]["config.json"] = b"[]"
    del files["index"]["model.safetensors"]
    files["index"]["model.safetensors.index.json"] = b'{"weight_map": 3}'
    files["known"]["nanochat_lit/provenance.json"] = b"[1]"
    return hub


def test_errors_are_one_line(odd_models, capsys):
    for name, message in ERRORS:
        status, _, error = main(capsys, "chat", "--model", name, "-p", "hi")
        assert (status, error.count("\n")) == (2, 1), error
        assert message.format(url=odd_models.url) in error


def test_errors_of_uploads(hub, export, capsys, monkeypatch):
    assert "without a token; run `hf auth login`, or set HF_TOKEN" in main(capsys, "push", export, "me/tiny")[2]
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "the token needs write permission for its owner" in main(capsys, "push", export, "me/tiny")[2]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the token needs write permission for its owner" in main(capsys, "push", export, "them/tiny")[2]
    hub.busy = True
    status, _, error = main(capsys, "push", export, "me/tiny")
    assert status == 2
    assert f"me/tiny: upload to {hub.url} failed (" in error


def test_without_a_network(hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    status, _, error = main(capsys, "pull", "me/tiny")
    assert status == 2
    assert "me/tiny: download from http://127.0.0.1:9 failed (" in error
    assert "check the network, HF_ENDPOINT and HF_HUB_OFFLINE" in error
    assert error.count("\n") == 1


def test_files_outside_the_folder_are_not_written(hub, export, tmp_path):
    export_hf(export, tmp_path / "hf")
    files = hub.add("me/tiny", tmp_path / "hf").branches["main"]
    files["../../escaped.json"] = files["nanochat_lit/../../escaped.json"] = b"{}"
    with pytest.raises(UserError):
        find_model("hf://me/tiny")
    assert not list(tmp_path.rglob("escaped.json"))


def test_commands_take_models_on_the_hub(hub, export, capsys, tmp_path, monkeypatch):
    export_hf(export, tmp_path / "hf")
    hub.add("me/tiny", tmp_path / "hf")
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    for command in (
        ["chat", "-m", "hf://me/tiny", "-p", "hi", "--max_new_tokens", "2"],
        ["evaluate", "bpb", "--model", "hf://me/tiny", "--data", tmp_path / "text.txt"],
        ["export", "--model", "hf://me/tiny", "--out", tmp_path / "again"],
    ):
        status, _, error = main(capsys, *command)
        assert status == 0, error
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "hf" / "model.safetensors"
    ).read_bytes()
    assert evaluate._out_folder("hf://me/tiny@v1", None) == Path("runs/tiny/export_evaluation")
    assert Path(SFTModule(base="hf://me/tiny").base).name == "tiny"
    asked = {}
    monkeypatch.setattr(
        "nanochat_lit.serve.server.ChatServer", lambda settings, _: asked.update(serve=settings) or Runs()
    )
    assert main(capsys, "serve", "--model", "hf://me/tiny")[0] == 0
    assert (Path(asked["serve"].model) / "model.safetensors").is_file()
    assert asked["serve"].name == "tiny"
    monkeypatch.setattr(ui_command, "_serve", lambda _, __, ___, shown, *____: asked.update(ui=shown[0].name))
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    assert main(capsys, "ui", "--model", "hf://me/tiny", "--port", "0")[0] == 0
    assert asked["ui"] == "tiny"


class Runs:
    def run(self, port):
        pass


@pytest.mark.slow
def test_the_commands_as_programs(hub, other_export, tmp_path):
    """The environment as a user sets it, and the client's own progress lines."""
    places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    for words, token in (
        (["push", other_export, "me/tiny", "--private"], TOKEN),
        (["pull", "me/tiny", "--out", tmp_path / "out"], TOKEN),
        (["bench", "infer", "--model", "hf://me/tiny", "--streams", "[1]", "--prompt_len", "4", "--new_tokens", "2"], TOKEN),
        (["pull", "me/tiny", "--out", tmp_path / "out2"], ""),
    ):  # fmt: skip
        command = [sys.executable, "-m", "nanochat_lit", *map(str, words)]
        environment = {
            **os.environ,
            **places,
            "HF_TOKEN": token,
            **({} if token else {"HF_HOME": str(tmp_path / "empty")}),
        }
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == (0 if token else 2), done.stderr
    assert "if it is private, run `hf auth login` or set HF_TOKEN" in done.stderr
    same(other_export, tmp_path / "out")

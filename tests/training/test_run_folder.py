"""A run folder: one process at a time, usable when the run was stopped, the same path everywhere, errors in one line."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from jsonargparse import ArgumentParser

from nanochat_lit import cli, load_export
from nanochat_lit.cli import fit_help
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.export import find_model
from nanochat_lit.training import ChatDataModule, PretrainModule, SFTModule, TextDataModule
from nanochat_lit.training.callbacks.checkpoint import RunCheckpoint, StopRequest
from nanochat_lit.training.run_records import read_metrics


@pytest.fixture
def stopped(write_recipe, pretrained, monkeypatch, capsys):
    """The run folder of a run that a signal has stopped after step 2 of 4, and what it said."""

    def stop(self, trainer, module, step, original=RunCheckpoint.on_step_end):
        if step == 2:
            self.stop_request.signum = signal.SIGTERM
        original(self, trainer, module, step)

    monkeypatch.setattr(RunCheckpoint, "on_step_end", stop)
    recipe = write_recipe(data={"tokenizer": str(pretrained / "tokenizer")})
    assert cli.main(["fit", "--config", str(recipe)]) == 128 + signal.SIGTERM
    return recipe.parent / "run", capsys.readouterr().err


def test_a_stopped_run_can_be_used(stopped, capsys, tmp_path):
    run, err = stopped
    assert "stopped after step 2" in err
    assert f"continue: nanochat-lit fit --config {run.parent}" in err
    assert read_json(run / "export" / "provenance.json")["planned_steps"] == 4
    checkpoint = run / "checkpoints" / "last.ckpt"
    weights = load_export(run / "export", "cpu")[0].state_dict()
    for source in (run, checkpoint, run / "checkpoints"):
        assert all(
            torch.equal(weights[name], value) for name, value in load_export(source, "cpu")[0].state_dict().items()
        )
        assert cli.main(["chat", "--model", str(source), "-p", "hi", "--max_new_tokens", "2"]) == 0
    assert cli.main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "export")]) == 0
    assert cli.main(["export", "--checkpoint", str(checkpoint)]) == 0
    assert (run / "export_last" / "model.safetensors").read_bytes() == (
        run / "export" / "model.safetensors"
    ).read_bytes()
    assert cli.main(["export", "--model", str(checkpoint), "--out", str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf" / "modeling_nanochat_lit.py").is_file()


def test_a_stopped_run_can_be_served(stopped):
    pytest.importorskip("litserve", reason="needs pip install '.[serve]'")
    from nanochat_lit.commands.serve import _found
    from nanochat_lit.serve.api import ChatAPI, ServeSettings, fingerprint_of
    from nanochat_lit.serve.server import ChatServer

    run, _ = stopped
    assert _found(str(run)) == str(run / "export")
    for source in (run / "export", run / "checkpoints" / "last.ckpt"):
        assert _found(str(source)) == str(source)
        settings = ServeSettings(model=str(source), name="tiny", num_slots=1)
        ChatServer(settings, [None])
        api = ChatAPI(settings, fingerprint_of(settings))
        api.setup("cpu")
        assert api.failure is None
    with pytest.raises(UserError, match="nowhere does not exist; give an export, a run folder"):
        _found("nowhere")


def test_the_newer_of_export_and_checkpoint_is_taken(stopped):
    run, _ = stopped
    assert find_model(run) == run / "export"
    (run / "checkpoints" / "step000002.ckpt").rename(run / "checkpoints" / "step000003.ckpt")
    assert find_model(run) == run / "checkpoints" / "step000003.ckpt"


def test_a_run_folder_is_a_base_and_gives_moments(pretrained, sft_recipe, tmp_path, capsys):
    fit = ["fit", "--config", str(sft_recipe), "--model.num_steps", "1"]
    assert cli.main([*fit, "--model.base", str(pretrained), "--model.optimizer_from", str(pretrained)]) == 0
    err = capsys.readouterr().err
    assert f"export: {tmp_path / 'sft' / 'export'}" in err
    assert f"next:   nanochat-lit chat --model {tmp_path / 'sft'}" in err


HOLDER = """
import sys
from pathlib import Path
from nanochat_lit.common.paths import run_lock
with run_lock(Path(sys.argv[1]), "nanochat-lit fit"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused(write_recipe, tmp_path, capsys):
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for command in (
            ["fit", "--config", str(write_recipe()), "--run_dir", str(run)],
            ["fit", "--config", str(write_recipe()), "--run_dir", str(run), "--ckpt_path", "last"],
            ["fit", "--config", str(write_recipe()), "--run_dir", str(run), "--trainer.devices", "2"],
            ["quickstart", "--fast", "--out", str(run)],
        ):
            assert cli.main(command) == 2
            assert f"in use by nanochat-lit fit, pid {holder.pid} on" in capsys.readouterr().err
        holder.kill()
    assert sorted(path.name for path in run.iterdir()) == [".lock"]


def test_only_folders_that_they_made_are_touched(pretrained, tmp_path, capsys):
    before = (pretrained / "metrics.csv").read_bytes()
    for overwrite in ("false", "true"):
        assert cli.main(["quickstart", "--fast", "--out", str(pretrained), "--overwrite", overwrite]) == 2
        assert "was not created by quickstart" in capsys.readouterr().err
    assert cli.main(["sweep", "recipes/miniseries.yaml", "--run_dir", str(pretrained)]) == 2
    assert "was not created by a sweep" in capsys.readouterr().err
    assert (pretrained / "metrics.csv").read_bytes() == before


def test_home_means_the_same_in_recipes_and_options(write_recipe, pretrained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").symlink_to(pretrained / "tokenizer")
    recipe = write_recipe(data={"tokenizer": "~/tok"}, model={"num_steps": 1}, run_dir="~/run")
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tok"]
    for name in ("config.yaml", "checkpoints", "metrics.csv", "export"):
        assert (tmp_path / "run" / name).exists()
    assert cli.main(["report", "~/run"]) == 0
    assert cli.main(["export", "--model=~/run", "--out=~/hf"]) == 0
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("answer", ["", None, "word " * 200], ids=["empty", "none", "question too long"])
def test_a_validation_without_text_is_left_out(answer, sft_recipe, conversation_file, tmp_path, capsys):
    lines = conversation_file.read_text("utf-8").splitlines()[:40]
    question = "word " * 200 if answer else "hi"
    messages = [{"role": "user", "content": question}]
    messages += [] if answer is None else [{"role": "assistant", "content": "" if not answer else "words"}]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"messages": messages})]), encoding="utf-8")
    assert cli.main(["fit", "--config", str(sft_recipe), "--data.path", str(path), "--model.num_steps", "1"]) in (0, 2)
    err = capsys.readouterr().err
    if "error:" in err:
        assert str(path) in err  # refused before training, by file and line
        return
    assert "val_bpb is not reported" in err
    run = tmp_path / "sft"
    assert read_json(run / "export" / "provenance.json")["val_bpb"] is None
    assert not any("val_bpb" in row for row in read_metrics(run / "metrics.csv").values())
    assert "nan" not in (run / "metrics.csv").read_text()


def test_a_text_validation_without_text_is_left_out(write_recipe, pretrained, tmp_path, capsys):
    words = json.dumps({"text": "the cat sat on the mat. " * 20})
    (tmp_path / "a.jsonl").write_text("\n".join([words] * 40))
    (tmp_path / "b.jsonl").write_text("\n".join([json.dumps({"text": ""})] * 5))
    recipe = write_recipe(
        data={"path": str(tmp_path), "tokenizer": str(pretrained / "tokenizer")}, model={"num_steps": 1}
    )
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert "val_bpb is not reported" in capsys.readouterr().err
    assert read_json(recipe.parent / "run" / "export" / "provenance.json")["val_bpb"] is None


def test_outputs_that_cannot_be_written_are_one_line(write_recipe, pretrained, text_folder, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    export, out = str(pretrained / "export"), str(file / "out")
    for command in (
        ["fit", "--config", str(write_recipe()), "--run_dir", out],
        ["tokenizer", "train", "--data", str(text_folder), "--out", out, "--vocab_size", "300"],
        ["data", "generate", "--out", out, "--num_documents", "1", "--num_conversations", "1", "--per_category", "1"],
        ["data", "prepare", "--data", str(text_folder), "--tokenizer", export, "--out", out],
        ["data", "info", str(text_folder), "--plot", f"{out}/plot.png"],
        ["export", "--model", export, "--out", out],
        ["report", str(pretrained), "--out", out],
        ["evaluate", "bpb", "--model", export, "--data", str(text_folder), "--max_docs", "1", "--out", out],
        ["quickstart", "--fast", "--out", out],
    ):
        capsys.readouterr()
        assert cli.main(command) == 2, command
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(err) == 1
        assert str(file) in err[0]


def test_a_class_of_the_current_folder(write_recipe, pretrained, tmp_path, monkeypatch):
    (tmp_path / "my_own_module.py").write_text(
        "from lightning.pytorch.callbacks import Callback\nclass Mine(Callback): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    recipe = write_recipe(data={"tokenizer": str(pretrained / "tokenizer")}, model={"num_steps": 1})
    assert cli.main(["fit", "--config", str(recipe), "--trainer.callbacks+=my_own_module.Mine"]) == 0


def test_the_keys_of_the_short_help_exist():
    parser = ArgumentParser()
    for kind, group in (
        (PretrainModule, "model"),
        (SFTModule, "sft"),
        (TextDataModule, "data"),
        (ChatDataModule, "chat"),
    ):
        parser.add_class_arguments(kind, group)
    known = {option.replace("--sft.", "--model.") for option in parser._option_string_actions}
    named = set(re.findall(r"^  (--(?:model|data)\.\S+)", fit_help("fit"), flags=re.MULTILINE))
    assert "--model.depth" in named
    assert named <= known


def test_nohup_is_respected(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    try:
        request.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.signum == 0
    finally:
        request.ignore()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        request.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.signum == signal.SIGHUP
    finally:
        request.ignore()
        signal.signal(signal.SIGHUP, before)

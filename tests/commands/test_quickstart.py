"""`quickstart`: the whole path, smaller than --fast, in an empty folder outside the checkout."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_lit import cli, load_export
from nanochat_lit.commands import quickstart as command
from nanochat_lit.common.paths import read_json
from nanochat_lit.training.run_records import read_metrics

SMALLER = {
    "num_documents": 1200,
    "num_conversations": 400,
    "pretrain_steps": 2,
    "sft_steps": 2,
    "per_category": 1,
    "max_new_tokens": 16,
}


def check(out, stdout, capsys):
    report = (out / "report.md").read_text("utf-8")
    for image in ("loss.png", "bpb.png"):
        assert (out / image).read_bytes().startswith(b"\x89PNG")
        assert image in report
    for word in ("# Quickstart report", "pretraining", "fine-tuning", "Tell me a story", "val bpb"):
        assert word in report
    assert f"nanochat-lit chat --model {out / 'export'}" in stdout
    for stage in ("pretrain", "."):
        metrics = read_metrics(out / stage / "metrics.csv")
        assert sum("val_bpb" in row for row in metrics.values()) >= 2
    made = read_json(out / "export" / "provenance.json")
    assert (made["stage"], made["data"][:14]) == ("sft", "the tiny world")
    model, tokenizer = load_export(out / "export", device="cpu")
    assert model.config.vocab_size == tokenizer.vocab_size
    capsys.readouterr()
    assert cli.main(["chat", "--model", str(out / "export"), "-p", "Hello!"]) == 0
    answer = capsys.readouterr().out
    assert answer.endswith("\n")
    assert not re.search(r"<\|\w+\|>", answer)
    run_readme_code(out)
    assert capsys.readouterr().out.endswith("\n")


def run_readme_code(out):
    """What the README says to type in Python works with the export that it says is there."""
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    (code,) = [block for block in blocks if "load_export" in block]
    assert "runs/quickstart/export" in code
    exec(code.replace("runs/quickstart", out.as_posix()), {})


def test_quickstart_leaves_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "FAST", SMALLER)
    monkeypatch.setattr(command, "DIALOGUES", (("Hello!",), ("Tell me a story about a fox named Pip.",)))
    assert cli.main(["quickstart", "--fast", "--out", "here"]) == 0
    stdout = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    check(tmp_path.joinpath("here").relative_to(tmp_path), stdout, capsys)


@pytest.mark.slow
def test_fast_as_people_run_it(tmp_path, monkeypatch, capsys):
    """About a minute, and once more over the first."""
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--overwrite", "true"]):
        assert cli.main(["quickstart", "--fast", *options]) == 0
        stdout = capsys.readouterr().out
    check((tmp_path / "runs" / "quickstart").relative_to(tmp_path), stdout, capsys)
    losses = [row["train_loss"] for row in read_metrics("runs/quickstart/metrics.csv").values() if "train_loss" in row]
    assert losses[-1] < losses[0]


PROGRAM = f"""
import sys
from nanochat_lit import cli
from nanochat_lit.commands import quickstart as command
command.FAST = {SMALLER | {"pretrain_steps": 40, "sft_steps": 40}!r}
command.DIALOGUES = (("Hello!",),)
sys.exit(cli.main(["quickstart", "--fast", "--out", sys.argv[1]]))
"""


@pytest.mark.slow
def test_quickstart_continues_after_kills(tmp_path):
    """The same command, killed in every stage, ends with the weights of one that nothing has disturbed."""

    def start(out):
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    whole, out = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(whole)
    assert undisturbed.wait(600) == 0, undisturbed.stderr.read()
    for moment in ("data", "pretrain/metrics.csv", "pretrain/export/model.safetensors", "metrics.csv"):
        process = start(out)
        while process.poll() is None and not (out / moment).exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
    process = start(out)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 0, error
    assert f"continuing the quickstart in {out}" in error
    assert (out / "report.md").is_file()
    for name in ("pretrain/export/model.safetensors", "export/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["quickstart", "--fast", "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) <= 2
    assert "file" in error[0]

"""Continuing with another configuration: what has changed is said, what may not change is refused."""

import csv
import shutil

import pytest
import torch
import yaml

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.training.checkpoint_files import KEY as CONFIG_KEY
from nanochat_lit.training.checkpoint_files import compare_configs


@pytest.fixture
def resume(pretrained, tmp_path, capsys):
    """Continue a finished toy run (4 steps) with more options; (exit status, what was said)."""
    run = shutil.copytree(pretrained, tmp_path / "run")

    def go(*options):
        capsys.readouterr()
        fixed = ["--config", str(run / "config.yaml"), "--run_dir", str(run), "--ckpt_path", "last"]
        return cli.main(["fit", *fixed, *options]), capsys.readouterr().err

    return go


def test_nothing_changed_nothing_said(resume):
    code, err = resume()
    assert code == 0
    assert "changed since the checkpoint" not in err


def test_a_key_that_an_older_checkpoint_lacks_is_off():
    older = "model: {init_args: {depth: 2}}"
    compare_configs(older, "model: {init_args: {depth: 2, bigram_factor: 0}}")
    with pytest.raises(UserError, match="bigram_factor is 5, but the checkpoint has 0; the model cannot change"):
        compare_configs(older, "model: {init_args: {depth: 2, bigram_factor: 5}}")
    compare_configs("model: {init_args: {base: a}}", "model: {init_args: {base: a}}")  # a stage that has no such key


def test_a_checkpoint_from_before_the_architecture_is_continued(resume, pretrained, tmp_path):
    """The same steps as in the whole run: what its configuration lacks is what it was trained with."""
    path = tmp_path / "run" / "checkpoints" / "step000002.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    config = yaml.safe_load(checkpoint[CONFIG_KEY])
    options = config["model"]["init_args"]
    for name in ("architecture", "tie_embeddings", "bigram_factor"):
        del options[name]
        assert name not in checkpoint["nanochat_lit"]["config"]
    options["window_pattern"] = "SSSL"  # a default that a resolved recipe used to state
    checkpoint[CONFIG_KEY] = yaml.safe_dump(config)
    torch.save(checkpoint, path)
    places = ["--run_dir", str(tmp_path / "rest"), "--data.tokenizer", str(pretrained / "tokenizer")]
    code, err = resume("--ckpt_path", str(path), *places)
    assert code == 0, err
    assert [line for line in err.splitlines() if line.startswith("changed") and "tokenizer" not in line] == []
    whole = _losses(pretrained)
    assert _losses(tmp_path / "rest") == {step: whole[step] for step in ("3", "4")}


def _losses(run):
    rows = csv.DictReader((run / "metrics.csv").read_text("utf-8").splitlines())
    return {row["step"]: row["train_loss"] for row in rows if row["train_loss"]}


def test_allowed_changes_are_said(resume):
    code, err = resume("--trainer.max_steps", "5", "--model.matrix_lr", "0.03", "--log_every", "3")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("changed since the checkpoint: ")]
    assert lines == [
        "changed since the checkpoint: model.matrix_lr 0.02 -> 0.03",
        "changed since the checkpoint: trainer.max_steps -1 -> 5",
    ]
    assert "step 5/5" in err


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("model.depth", "3", "the model"),
        ("model.window_pattern", "L", "the model"),
        ("model.bigram_factor", "2", "the model"),
        ("model.sequence_len", "32", "the packed sequences"),
        ("data.vocab_size", "400", "the tokenizer"),
    ],
)
def test_changes_that_would_make_another_run_are_refused(resume, key, value, why):
    code, err = resume(f"--{key}", value)
    assert code == 2
    assert f"{key} is {value}, but the checkpoint has" in err
    assert f"{why} cannot change within a run" in err
    assert len(err.splitlines()) <= 2

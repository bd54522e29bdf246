"""Another optimizer by recipe alone: under one rank, under ddp; zero needs one whose state can be divided."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat_lit import cli

HERE = Path(__file__).parent
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02, "weight_decay": 0.0}}
SIGN = {"class_path": "my_extension.SignSGD", "init_args": {"lr": 0.005}}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def losses_of(recipe):
    rows = csv.DictReader((recipe.parent / "run" / "metrics.csv").read_text("utf-8").splitlines())
    return [float(row["train_loss"]) for row in rows if row["train_loss"]]


@pytest.mark.parametrize("optimizer", [ADAMW, SIGN], ids=["torch", "own"])
def test_it_trains_and_resumes(write_recipe, optimizer):
    options = {"optimizer": optimizer, "num_steps": 6, "eval_every": 3, "warmdown": 0.0}
    whole, halves = write_recipe(model=options), write_recipe(model=options)
    assert cli.main(["fit", "--config", str(whole)]) == 0
    losses = losses_of(whole)
    assert losses[-1] < losses[0] - 0.1
    assert cli.main(["fit", "--config", str(halves), "--trainer.max_steps", "3"]) == 0
    assert cli.main(["fit", "--config", str(halves), "--ckpt_path", "last"]) == 0
    assert losses_of(halves) == losses
    assert (halves.parent / "run" / "export" / "model.safetensors").is_file()
    checkpoint = torch.load(whole.parent / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["nanochat_lit"]["optimizer"] == optimizer["class_path"].rpartition(".")[2]
    assert len(checkpoint["optimizer_states"][0]["param_groups"]) > 3


def test_a_checkpoint_of_another_optimizer_is_refused(write_recipe, capsys):
    recipe = write_recipe(model={"num_steps": 2})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    other = write_recipe(model={"num_steps": 4, "optimizer": ADAMW})
    checkpoint = recipe.parent / "run" / "checkpoints" / "last.ckpt"
    tokenizer = recipe.parent / "run" / "tokenizer"
    words = ["fit", "--config", str(other), "--ckpt_path", str(checkpoint), "--data.tokenizer", str(tokenizer)]
    assert cli.main(words) == 2
    assert "has the optimizer state of MuonAdamW, the recipe uses AdamW" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.multi_rank
@pytest.mark.parametrize("strategy", ["ddp", "zero"])
def test_two_ranks(write_recipe, strategy):
    recipe = write_recipe(model={"optimizer": SIGN, "num_steps": 2}, data={"micro_batch_size": 4})
    words = [sys.executable, "-m", "nanochat_lit", "fit", "--config", str(recipe), "--trainer.devices", "2"]
    done = subprocess.run(
        [*words, "--trainer.strategy", strategy],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if strategy == "ddp":
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(losses_of(recipe)) == 2
    else:
        assert done.returncode == 2, done.stderr[-3000:]
        assert "cannot shard the state of SignSGD" in done.stderr
        assert "Traceback" not in done.stderr

"""A loss that is not a number, or explodes, ends the run with everything that shows why; nothing good is lost."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from nanochat_lit import Tokenizer, cli
from nanochat_lit.engine.checkpoint import step_files
from nanochat_lit.training.checkpoint_files import resolve
from nanochat_lit.training.run_records import read_metrics


@pytest.fixture
def spoilt(write_recipe, pretrained, tmp_path, monkeypatch):
    """A recipe whose loss goes wrong, and where the rows of the spoilt batch are written."""
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def write(trainer=(), model=(), **spoil):
        rows = tmp_path / "rows.json"
        callback = {"class_path": "observed_run.Spoil", "init_args": {"path": str(rows), **spoil}}
        trainer = {"accelerator": "cpu", "devices": 1, **dict(trainer), "callbacks": [callback]}
        model = {"num_steps": 8, "eval_every": 0, **dict(model)}
        recipe = write_recipe(model, {"tokenizer": str(pretrained / "tokenizer")}, trainer=trainer, checkpoint_every=2)
        return recipe, rows

    return write


def texts(rows, tokenizer):
    """All that the rows say, in their order."""
    return [tokenizer.decode(row) for row in json.loads(rows.read_text("utf-8"))]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_nan_stops_before_the_update(spoilt, pretrained, capsys):
    """Every step is looked at on a CPU, also those that are not logged; the second micro-batch of step 6 is the bad one."""
    recipe, rows = spoilt(step=6, micro_batch=1)
    run = recipe.parent / "run"
    assert cli.main(["fit", "--config", str(recipe), "--log_every", "4"]) == 2
    error = capsys.readouterr().err
    assert "error: the loss of step 6 is not finite" in error
    assert "Traceback" not in error
    # the documents: all of the batch in the file, the beginning in the message
    spoilt_texts = texts(rows, Tokenizer.load(pretrained / "tokenizer"))
    file = (run / "bad_batch.md").read_text("utf-8")
    assert len(spoilt_texts) == 4
    written = "".join(line for line in file.splitlines() if line and not line.startswith("#"))
    assert written.replace(" ", "") == "".join(spoilt_texts).replace(" ", "")
    assert spoilt_texts[0].strip()[:30] in error
    # the state at the stop has its own name; it is that of step 5, before the update, and `last` is the step before
    state = torch.load(run / "checkpoints" / "nan-step000005.ckpt", weights_only=True)
    assert state["global_step"] == 5
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    assert list(step_files(run / "checkpoints")) == [4, 2]
    assert resolve("last", run) == run / "checkpoints" / "step000004.ckpt"
    assert max(read_metrics(run / "metrics.csv")) == 4
    # and the run can go on
    plain = yaml.safe_load(recipe.read_text("utf-8"))
    del plain["trainer"]["callbacks"]
    recipe.write_text(yaml.safe_dump(plain), encoding="utf-8")
    assert cli.main(["fit", "--config", str(recipe), "--ckpt_path", str(run / "checkpoints/nan-step000005.ckpt")]) == 0
    assert max(read_metrics(run / "metrics.csv")) == 8


def test_an_explosion_stops_the_run_and_can_be_allowed(spoilt, capsys):
    """From step 5 on the loss is 4 nats higher. It is an explosion in step 14; the newest checkpoint from before it stays."""
    recipe, _ = spoilt(step=5, add="4", model={"num_steps": 16})
    run = recipe.parent / "run"
    assert cli.main(["fit", "--config", str(recipe), "--log_every", "2"]) == 2
    error = capsys.readouterr().err
    assert "error: the loss of step 14 is " in error
    assert "for 10 steps" in error
    assert (run / "checkpoints" / "exploded-step000014.ckpt").is_file()
    assert list(step_files(run / "checkpoints")) == [12, 10, 4]
    assert max(read_metrics(run / "metrics.csv")) == 14
    options = ["--overwrite", "true", "--stop_on_explosion", "0"]
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    assert sorted(path.name for path in (run / "checkpoints").glob("*-step*")) == [], "the new run has replaced it"
    assert not (run / "bad_batch.md").exists()


@pytest.mark.slow
@pytest.mark.multi_rank
def test_ranks_stop_together(spoilt):
    """The loss is NaN on rank 1 alone, in a step that is not logged: found in the next that is, or before a checkpoint."""
    from test_launch import environment, start

    recipe, _ = spoilt(
        step=5, rank=1, trainer={"devices": 2, "strategy": "zero"}, model={"tokens_per_step": 1024, "num_steps": 20}
    )
    run = recipe.parent / "run"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = start(recipe, "--log_every", "10", env=environment(PYTHONPATH=path))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert err.count("error:") == 1
    assert "the loss of step 5 is not finite" in err
    assert list(step_files(run / "checkpoints")) == [4, 2]
    assert (run / "checkpoints" / "nan-step000006.ckpt").is_file(), "found before the checkpoint of step 6 was written"
    assert all(tensor.isfinite().all() for tensor in weights(run / "checkpoints" / "step000004.ckpt").values())
    file = (run / "bad_batch.md").read_text("utf-8")
    assert "# Rank 1: the micro-batch with the highest loss, in step 5: not finite" in file


def test_a_negative_margin_is_refused(write_recipe, capsys):
    assert cli.main(["fit", "--config", str(write_recipe()), "--stop_on_explosion", "-1"]) == 2
    assert "stop_on_explosion is -1.0" in capsys.readouterr().err

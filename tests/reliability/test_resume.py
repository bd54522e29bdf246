"""A run that continues from any of its checkpoints gives what it would have given: the same rows, the same weights."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from nanochat_lit import cli
from nanochat_lit.training.run_records import read_metrics

KEEP_ALL = ["--keep_last", "100", "--checkpoint_every", "1"]
FIGURES = ("train_loss", "train_loss_ema", "grad_norm", "total_flops", "lr/wte", "val_bpb")


def figures(run):
    """The figures of every step that no clock changes."""
    rows = read_metrics(run / "metrics.csv")
    return {step: {name: row[name] for name in FIGURES if name in row} for step, row in rows.items()}


def weights(run):
    """At the last step."""
    return torch.load(max((run / "checkpoints").glob("step*.ckpt")), weights_only=True)["state_dict"]


def at_step(run, step, target):
    """The run's folder as a kill right after the checkpoint of `step` leaves it, later rows included."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("checkpoints", "export"))
    (target / "checkpoints").mkdir()
    name = f"step{step:06d}.ckpt"
    shutil.copy(run / "checkpoints" / name, target / "checkpoints" / name)


def assert_same(run, whole):
    assert figures(run) == figures(whole)
    ours, theirs = weights(run), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module", params=[0, 2], ids=["read_here", "two_workers"])
def whole_run(request, write_recipe):
    """A run of seven steps of two micro-batches, logged every second step: windows of losses are open at odd steps.

    With workers also the softmax of the loss is sampled, and the run starts from counts.
    """
    sampled, counted = 50 * request.param, 2000 * request.param
    model = {"num_steps": 7, "eval_every": 3, "sampled_softmax": sampled, "counted_tokens": counted}
    recipe = write_recipe(model, {"num_workers": request.param, "buffer_size": 20})
    assert cli.main(["fit", "--config", str(recipe), "--log_every", "2", *KEEP_ALL]) == 0
    return recipe, recipe.parent / "run"


@pytest.mark.parametrize("step", [2, 3, 5, 7])
def test_pretraining_continues_bit_for_bit(whole_run, tmp_path, step, capsys):
    """After 2 (in the middle of a document buffer), 3 (before its validation), 5 (losses not yet logged), 7 (the end)."""
    recipe, whole = whole_run
    run = tmp_path / "run"
    at_step(whole, step, run)
    torch.manual_seed(12345)
    assert (
        cli.main(["fit", "--config", str(recipe), "--run_dir", str(run), "--log_every", "2", "--ckpt_path", "last"])
        == 0
    )
    err = capsys.readouterr().err
    assert f"resuming from {run / 'checkpoints' / f'step{step:06d}.ckpt'}" in err
    assert ("softmax over tokens" in err) == ("sampled_softmax: 100" in recipe.read_text("utf-8"))
    assert "counts of" not in err  # only a new run counts
    assert_same(run, whole)
    assert (run / "samples.md").read_text("utf-8") == (whole / "samples.md").read_text("utf-8")


def test_fine_tuning_continues_bit_for_bit(sft_recipe, tmp_path):
    whole, run = tmp_path / "sft", tmp_path / "again"
    options = ["--config", str(sft_recipe), "--model.num_steps", "5", "--model.eval_every", "2"]
    assert cli.main(["fit", *options, *KEEP_ALL]) == 0
    at_step(whole, 2, run)
    assert cli.main(["fit", *options, "--run_dir", str(run), "--ckpt_path", "last"]) == 0
    assert_same(run, whole)


@pytest.mark.parametrize("step", [3, 4])
def test_reinforcement_learning_continues_bit_for_bit(write_rl_recipe, tmp_path, step):
    """After 3 (half-way through the answers in use, figures not yet logged) and 4 (before its validation)."""
    model = {"num_steps": 6, "eval_every": 2, "updates_per_batch": 2, "clip_ratio": 0.2, "kl_coefficient": 0.1}
    recipe, run = write_rl_recipe(model), tmp_path / "again"
    options = ["--config", str(recipe), "--log_every", "4"]
    assert cli.main(["fit", *options, *KEEP_ALL]) == 0
    whole = recipe.parent / "run"
    at_step(whole, step, run)
    torch.manual_seed(12345)
    assert cli.main(["fit", *options, "--run_dir", str(run), "--ckpt_path", "last"]) == 0
    assert_same(run, whole)
    names = ("reward", "entropy", "kl", "mixed_groups", "val_accuracy", "val_pass@1", "val_kl")
    rows, wanted = (read_metrics(folder / "metrics.csv") for folder in (run, whole))
    found = {(at, name) for at, row in wanted.items() for name in names if row.get(name) != rows[at].get(name)}
    assert not found
    assert sum(name in row for row in wanted.values() for name in names) > 12
    assert (run / "samples.md").read_text("utf-8") == (whole / "samples.md").read_text("utf-8")


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "lost"])
def test_preferences_continue_bit_for_bit(write_dpo_recipe, tmp_path, is_kept):
    """After 3, with figures not yet logged and a step of two micro-batches; the reference is kept, or computed again."""
    recipe, run = write_dpo_recipe({"num_steps": 6, "eval_every": 2}), tmp_path / "again"
    options = ["--config", str(recipe), "--log_every", "2"]
    assert cli.main(["fit", *options, *KEEP_ALL]) == 0
    whole = recipe.parent / "run"
    at_step(whole, 3, run)
    if not is_kept:
        shutil.rmtree(run / "reference")
    torch.manual_seed(12345)
    assert cli.main(["fit", *options, "--run_dir", str(run), "--ckpt_path", "last"]) == 0
    assert_same(run, whole)
    names = ("margin", "preference_accuracy", "val_margin", "val_win_rate", "val_kl")
    rows, wanted = (read_metrics(folder / "metrics.csv") for folder in (run, whole))
    assert not {(at, name) for at, row in wanted.items() for name in names if row.get(name) != rows[at].get(name)}
    assert sum(name in row for row in wanted.values() for name in names) > 12
    assert (run / "samples.md").read_text("utf-8") == (whole / "samples.md").read_text("utf-8")


def test_random_numbers_continue(write_recipe, tmp_path, monkeypatch):
    """A callback that draws is the stand-in for dropout: it gets the numbers it would have got."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    callback = {"class_path": "reliability_callbacks.Draws", "init_args": {"path": str(tmp_path / "whole.txt")}}
    trainer = {"accelerator": "cpu", "devices": 1, "callbacks": [callback]}
    recipe = write_recipe({"num_steps": 5, "eval_every": 2}, trainer=trainer)
    assert cli.main(["fit", "--config", str(recipe), *KEEP_ALL]) == 0
    run = tmp_path / "run"
    at_step(recipe.parent / "run", 3, run)
    callback["init_args"]["path"] = str(tmp_path / "rest.txt")
    again = yaml.safe_load(recipe.read_text("utf-8")) | {"trainer": trainer, "run_dir": str(run)}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again), encoding="utf-8")
    assert cli.main(["fit", "--config", str(tmp_path / "again.yaml"), "--ckpt_path", "last"]) == 0
    whole, rest = ((tmp_path / name).read_text("utf-8").splitlines() for name in ("whole.txt", "rest.txt"))
    assert len(rest) == 4  # two micro-batches in each of two steps
    assert rest == whole[-4:]


def test_another_micro_batch_size_sees_the_same_rows(whole_run, tmp_path):
    """Sums in another order, so not bit for bit: within 1e-5 nats. The place in the data and the accumulation carry over."""
    recipe, whole = whole_run
    run = tmp_path / "run"
    at_step(whole, 2, run)
    if yaml.safe_load(recipe.read_text("utf-8"))["data"]["init_args"]["num_workers"]:
        pytest.skip("workers take turns batch by batch, so other batches are other rows")
    options = ["--run_dir", str(run), "--log_every", "2", "--ckpt_path", "last", "--data.micro_batch_size", "2"]
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    expected, found = figures(whole), figures(run)
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        for name, value in row.items():
            assert found[step][name] == pytest.approx(value, abs=1e-5), (step, name)


def test_another_number_of_workers_goes_on_near_by(whole_run, tmp_path, capsys):
    recipe, whole = whole_run
    run = tmp_path / "run"
    at_step(whole, 3, run)
    options = ["--run_dir", str(run), "--log_every", "2", "--ckpt_path", "last", "--data.num_workers", "1"]
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    is_other = yaml.safe_load(recipe.read_text("utf-8"))["data"]["init_args"]["num_workers"] == 2
    assert ("resuming with unused data" in capsys.readouterr().err) is is_other
    assert figures(run).keys() == figures(whole).keys()

"""Real `fit` processes that are killed, told to stop, or run out of disk, and continue with --ckpt_path last."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from nanochat_lit import cli
from nanochat_lit.engine.checkpoint import damage, step_files
from nanochat_lit.training.callbacks.checkpoint import RunCheckpoint
from nanochat_lit.training.checkpoint_files import AtomicCheckpointIO
from nanochat_lit.training.run_records import MetricsFile, read_metrics

FIGURES = ("train_loss", "val_bpb")
TIMEOUT_S = 240


def start(recipe, *options):
    """A fit process in a group of its own, so that its loader workers can be killed with it."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "nanochat_lit", "fit", "--config", str(recipe), *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def fit(recipe, *options):
    """Run a process to its end; the exit status and what was said. What is not to be killed can run in this process."""
    process = start(recipe, *options)
    _, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, err


def figures(run):
    rows = read_metrics(run / "metrics.csv")
    return {step: {name: row[name] for name in FIGURES if name in row} for step, row in rows.items()}


def assert_same(run, whole):
    assert figures(run) == figures(whole)
    assert_same_weights(run, whole)


def assert_same_weights(run, whole):
    ours, theirs = (
        torch.load(max((folder / "checkpoints").glob("step*.ckpt")), weights_only=True)["state_dict"]
        for folder in (run, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def make(write_recipe, pretrained):
    """Recipes of one run: eight steps of two micro-batches, validated after every third, saved after every second."""

    def recipe(*callbacks, num_workers=0, **model):
        trainer = {"accelerator": "cpu", "devices": 1, "callbacks": list(callbacks)}
        data = {"tokenizer": str(pretrained / "tokenizer"), "num_workers": num_workers, "buffer_size": 20}
        model = {"num_steps": 8, "eval_every": 3, **model}
        return write_recipe(model, data, trainer=trainer, checkpoint_every=2)

    return recipe


def callback(name, /, **arguments):
    return {"class_path": f"reliability_callbacks.{name}", "init_args": arguments}


@pytest.fixture(scope="module")
def whole(make):
    """The run that nobody disturbs, in this process: what a process does must not depend on which it is."""
    recipe = make()
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    return recipe.parent / "run"


IN_BACKGROUND = ("--checkpoint_in_background", "true")

# The fast suite kills in the two most awkward moments.
MOMENTS = [
    pytest.param("write", 4, IN_BACKGROUND),
    pytest.param("accumulation", 5, IN_BACKGROUND, marks=pytest.mark.slow),
    pytest.param("backward", 2, (), marks=pytest.mark.slow),
    pytest.param("validation", 3, ()),
    pytest.param("validation", 8, IN_BACKGROUND, marks=pytest.mark.slow),
    pytest.param("write", 8, (), marks=pytest.mark.slow),
    pytest.param("backward", 0, (), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moment", "step", "options"), MOMENTS)
def test_a_kill_changes_nothing(make, whole, moment, step, options):
    recipe = make(callback("Signal", moment=moment, step=step))
    run = recipe.parent / "run"
    code, err = fit(recipe, *options)
    assert code == -signal.SIGKILL, err
    assert (moment == "write") is bool(list(run.glob("checkpoints/.step*.tmp")))
    plain = yaml.safe_load(recipe.read_text("utf-8"))
    plain["trainer"]["callbacks"] = []
    recipe.write_text(yaml.safe_dump(plain), encoding="utf-8")
    assert cli.main(["fit", "--config", str(recipe), "--ckpt_path", "last"]) == 0
    assert_same(run, whole)
    assert not list(run.glob("checkpoints/.*")), "what the kill left behind is cleared away"


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "step"), [("accumulation", 3), ("write", 4), ("validation", 4)])
def test_a_kill_changes_nothing_in_reinforcement_learning(write_rl_recipe, moment, step):
    model = {"num_steps": 6, "eval_every": 2}
    undisturbed = write_rl_recipe(model, checkpoint_every=2)
    assert cli.main(["fit", "--config", str(undisturbed)]) == 0
    trainer = {"accelerator": "cpu", "devices": 1, "callbacks": [callback("Signal", moment=moment, step=step)]}
    recipe = write_rl_recipe(model, trainer=trainer, checkpoint_every=2)
    code, err = fit(recipe)
    assert code == -signal.SIGKILL, err
    code, err = fit(recipe, "--ckpt_path", "last", "--trainer.callbacks", "[]")
    assert code == 0, err
    runs = [path.parent / "run" for path in (recipe, undisturbed)]
    assert_same(*runs)
    rewards = [[row.get("reward") for row in read_metrics(run / "metrics.csv").values()] for run in runs]
    assert rewards[0] == rewards[1]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "step"), [("start", 0), ("accumulation", 3), ("validation", 4)])
def test_a_kill_changes_nothing_in_preferences(write_dpo_recipe, moment, step):
    """At the start: before the reference is computed."""
    model = {"num_steps": 6, "eval_every": 2}
    undisturbed = write_dpo_recipe(model, checkpoint_every=2)
    assert cli.main(["fit", "--config", str(undisturbed)]) == 0
    trainer = {"accelerator": "cpu", "devices": 1, "callbacks": [callback("Signal", moment=moment, step=step)]}
    recipe = write_dpo_recipe(model, trainer=trainer, checkpoint_every=2)
    code, err = fit(recipe)
    assert code == -signal.SIGKILL, err
    code, err = fit(recipe, *(["--ckpt_path", "last"] if step else []), "--trainer.callbacks", "[]")
    assert code == 0, err
    runs = [path.parent / "run" for path in (recipe, undisturbed)]
    assert_same(*runs)
    margins = [[row.get("margin") for row in read_metrics(run / "metrics.csv").values()] for run in runs]
    assert margins[0] == margins[1]


def assert_two_ranks_equal_one(one, two, strategy, names):
    """The recipes' columns within 1e-5, as sums come in another order."""
    assert cli.main(["fit", "--config", str(one)]) == 0
    code, err = fit(two, "--trainer.devices", "2", "--trainer.strategy", strategy)
    assert code == 0, err
    wanted, found = (read_metrics(path.parent / "run" / "metrics.csv") for path in (one, two))
    assert found.keys() == wanted.keys()
    for step, row in wanted.items():
        for name in names.split():
            if name in row:
                assert found[step][name] == pytest.approx(row[name], abs=1e-5), (step, name)


@pytest.mark.slow
@pytest.mark.multi_rank
@pytest.mark.parametrize("strategy", ["zero", "ddp"])
def test_preferences_on_two_ranks_are_those_on_one(write_dpo_recipe, strategy):
    """The same pairs and reference."""
    names = "train_loss grad_norm margin val_preference_accuracy val_margin val_win_rate val_kl"
    assert_two_ranks_equal_one(write_dpo_recipe(), write_dpo_recipe(), strategy, names)


@pytest.mark.slow
@pytest.mark.multi_rank
@pytest.mark.parametrize("strategy", ["zero", "ddp"])
def test_reinforcement_learning_on_two_ranks_is_that_on_one(write_rl_recipe, strategy):
    """The same questions, answers and rewards."""
    names = "train_loss grad_norm reward entropy mixed_groups val_accuracy val_pass@1"
    assert_two_ranks_equal_one(write_rl_recipe(), write_rl_recipe(), strategy, names)


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("SIGTERM", "accumulation"),
        pytest.param("SIGINT", "validation", marks=pytest.mark.slow),
        pytest.param("SIGHUP", "backward", marks=pytest.mark.slow),
    ],
)
def test_a_signal_lets_the_step_finish_and_saves(make, whole, name, moment):
    recipe = make(callback("Signal", moment=moment, step=3, name=name))
    run = recipe.parent / "run"
    code, err = fit(recipe, *IN_BACKGROUND)
    assert code == 128 + getattr(signal, name)
    assert f"{name}: finishing this step, then saving a checkpoint" in err
    assert "stopped after step 4" in err
    assert "Traceback" not in err
    assert next(iter(step_files(run / "checkpoints"))) == 4
    code, err = fit(recipe, "--ckpt_path", "last", "--trainer.callbacks", "[]")
    assert code == 0, err
    assert_same(run, whole)


def test_ctrl_c_before_the_first_step(make, monkeypatch, capfd):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    recipe = make(callback("Signal", moment="start", step=0, name="SIGINT"))
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["fit", "--config", str(recipe)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # the Trainer ignores it from then on
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"


def test_ctrl_c_that_ends_the_compiler_is_a_stop(tmp_path, capsys):
    """A terminal sends it to the compiler, too, whose error is then no defect."""
    error = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})()
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=AtomicCheckpointIO()), global_step=0)
    checkpoint = RunCheckpoint(tmp_path, SimpleNamespace())
    checkpoint.on_exception(trainer, None, error)  # without a signal it is one
    checkpoint.stop_request.signum = signal.SIGINT
    with pytest.raises(SystemExit) as stop:
        checkpoint.on_exception(trainer, None, error)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped while step 1 was compiled\n"


def test_metrics_on_a_full_disk_end_the_run_with_one_line(make, monkeypatch, capfd):
    """The checkpoints of before are there."""
    recipe = make()
    run, write = recipe.parent / "run", MetricsFile.log_metrics

    def fail(self, metrics, step=None):
        if step == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, metrics, step)

    monkeypatch.setattr(MetricsFile, "log_metrics", fail)
    assert cli.main(["fit", "--config", str(recipe), "--log_every", "1"]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("error: the disk is full")
    assert max(step_files(run / "checkpoints")) == 6


IN_TERMINAL = """
import fcntl, os, sys, termios
if sys.argv[1] == "controls":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["controls", "is only written to"])
def test_a_terminal_that_closes(make, whole, kind):
    """It saves and ends if the system tells it (SIGHUP); a process that left its terminal trains to the end."""
    recipe = make(callback("Signal", moment="accumulation", step=3, name="SIGSTOP"))
    run = recipe.parent / "run"
    ours, theirs = os.openpty()
    words = ["-m", "nanochat_lit", "fit", "--config", str(recipe)]
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, kind, *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    os.close(ours)
    process.send_signal(signal.SIGCONT)
    if kind == "controls":
        assert process.wait(TIMEOUT_S) == 128 + signal.SIGHUP
        assert next(iter(step_files(run / "checkpoints"))) == 4
        assert (run / "export").is_dir()
        code, err = fit(recipe, "--ckpt_path", "last", "--trainer.callbacks", "[]")
        assert code == 0, err
    else:
        assert process.wait(TIMEOUT_S) == 0
    assert_same(run, whole)


def test_a_run_that_the_trainer_stops_resumes(make, whole, monkeypatch):
    """As max_time does, between two micro-batches: the step is finished and saved."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    recipe = make(callback("Stop", step=4))
    run = recipe.parent / "run"
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert max(step_files(run / "checkpoints")) == 5
    assert cli.main(["fit", "--config", str(recipe), "--ckpt_path", "last", "--trainer.callbacks", "[]"]) == 0
    found = figures(run)
    assert found[5].pop("val_bpb") > 0  # the first part ended with a validation
    assert found == figures(whole)
    assert_same_weights(run, whole)


def test_a_full_disk_costs_only_the_checkpoints_it_hits(make, whole, monkeypatch, capfd):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    recipe = make(callback("SmallDisk", first=4, last=4, limit=100_000))
    run = recipe.parent / "run"
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    err = capfd.readouterr().err
    (warning,) = [line for line in err.splitlines() if line.startswith("warning:")]
    assert "step000004.ckpt could not be written" in warning
    assert "training continues" in warning
    assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.multi_rank
@pytest.mark.parametrize("strategy", ["zero", "ddp"])
def test_two_ranks_are_killed_and_stopped_and_continue(make, tmp_path, strategy):
    """The process that people see is killed, then asked to stop: both ranks end, and go on bit for bit together."""
    ranks = ("--trainer.devices", "2", "--trainer.strategy", strategy, "--data.micro_batch_size", "2")
    whole = make()
    code, err = fit(whole, *ranks)
    assert code == 0, err
    recipe, without = make(callback("Signal", moment="accumulation", step=5)), ("--trainer.callbacks", "[]")
    run = recipe.parent / "run"
    code, err = fit(recipe, *ranks)
    assert code == -signal.SIGKILL
    assert "rank 0 died" in err
    assert max(step_files(run / "checkpoints")) == 4
    recipe = make(callback("Signal", moment="accumulation", step=6, name="SIGTERM"))
    code, err = fit(recipe, *ranks, "--run_dir", str(run), "--ckpt_path", "last")
    assert code == 128 + signal.SIGTERM, err
    assert err.count("stopped after step 7") == 1
    assert "failed" not in err
    code, err = fit(recipe, *ranks, *without, "--run_dir", str(run), "--ckpt_path", "last")
    assert code == 0, err
    assert_same(run, whole.parent / "run")


@pytest.mark.slow
def test_a_disk_that_stays_full_is_an_error_at_the_end(make):
    recipe = make(callback("SmallDisk", first=4, last=9, limit=100_000))
    run = recipe.parent / "run"
    code, err = fit(recipe)
    assert code == 2
    assert "step000008.ckpt cannot be written" in err.splitlines()[-1]
    assert "Traceback" not in err
    files = step_files(run / "checkpoints")
    assert list(files) == [3, 2]
    assert [damage(path) for path in files.values()] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_twenty_random_kills(make, num_workers):
    """Whenever it comes: the run needs longer, and that is all."""
    rng = random.Random(num_workers)
    whole = make(num_workers=num_workers, num_steps=40)
    assert fit(whole)[0] == 0
    recipe = make(num_workers=num_workers, num_steps=40)
    run, kills = recipe.parent / "run", 0
    while kills < 10:
        process = start(recipe, "--ckpt_path", "last")
        _wait_for_training(process, run)
        time.sleep(rng.random() * 0.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    code, err = fit(recipe, "--ckpt_path", "last")
    assert code == 0, err
    assert_same(run, whole.parent / "run")


def _wait_for_training(process, run):
    """Until this process has written a row, or has ended."""
    path = run / "metrics.csv"
    before = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime_ns != before:
            return
        time.sleep(0.01)

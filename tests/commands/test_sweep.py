"""`sweep`: what is finished is skipped, what was interrupted goes on, what is another run is refused; the laws on its page."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml

from nanochat_lit import GPTConfig, cli
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.model.accounting import count_parameters, flops_per_token
from nanochat_lit.report.sweep import read_sweep
from nanochat_lit.training.run_records import read_metrics

ALPHA, BETA = 0.34, 0.28


@pytest.fixture
def recipe(tmp_path, write_recipe):
    """A sweep of toy runs: depths 1, 2 and 4 with two budgets."""

    def write(**changes):
        content = {
            "run_dir": str(tmp_path / "sweep"),
            "fit": str(write_recipe({"eval_every": 0, "num_steps": None})),
            "depths": [1, 2, 4],
            "flops_budgets": [4.0e9, 1.6e10],
            "options": {"data.val_docs": 5},
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
        return path

    return write


def pretend(run, val_bpb, steps=10, tokens=None):
    """Leave in a run's folder what a finished one leaves."""
    config = GPTConfig.from_depth(run.depth or 2, vocab_size=4096, sequence_len=512, head_dim=64)
    flops = flops_per_token(config)
    tokens = run.budget / flops if tokens is None else tokens
    write_json(run.folder / "export" / "config.json", config.to_dict())
    write_json(run.folder / "export" / "provenance.json", {"stage": "pretrain"})
    write_json(run.folder / "plan.json", {"num_steps": steps})
    with (run.folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "val_bpb", "train_loss", "tokens", "total_flops", "seconds"])
        writer.writerow([steps, val_bpb, 1.0, tokens, tokens * flops, 3600])
    return count_parameters(config).scaling, tokens


def test_laws_of_made_up_runs_are_recovered(recipe, capsys):
    """Losses by E + A / N^alpha + B / D^beta, over depths whose sizes are as they are; exponents within 0.04 of theory.

    Theory takes 6 N FLOPs a token; ours have attention besides, a few per cent of it.
    """
    budgets = [1.0e16, 3.0e16, 1.0e17, 3.0e17]
    path = recipe(depths=list(range(4, 17)), flops_budgets=budgets)
    sweep = read_sweep(str(path), {})
    for run in sweep.runs:
        size, tokens = pretend(run, 0.0)
        pretend(run, 1.0 + 90 / size**ALPHA + 60 / tokens**BETA)
    assert cli.main(["sweep", str(path), "--train", "false"]) == 0
    assert "best N = " in capsys.readouterr().out
    folder = path.parent / "sweep"
    results = read_json(folder / "sweep_results.json")
    laws = {law["name"]: law for law in results["laws"]}
    assert len(results["runs"]) == len(sweep.runs)
    assert all(best["is_inside"] for best in results["optima"])
    assert laws["best N"]["exponent"] == pytest.approx(BETA / (ALPHA + BETA), abs=0.04)
    assert laws["best D"]["exponent"] == pytest.approx(ALPHA / (ALPHA + BETA), abs=0.04)
    page = unescape((folder / "report" / "report.html").read_text("utf-8"))
    for text in ("Hoffmann et al. 2022", laws["best N"]["text"], "1e17_d08", 'alt="best size by compute"'):
        assert text in page
    assert "not finished" not in page


def test_a_series_without_budgets(recipe):
    path = recipe(depths=[4, 6, 8, 10, 12], flops_budgets=[])
    for run in read_sweep(str(path), {}).runs[:-1]:
        config = GPTConfig.from_depth(run.depth, vocab_size=4096, sequence_len=512, head_dim=64)
        tokens = 12 * count_parameters(config).scaling
        pretend(run, 0.6 + 50 * (tokens * flops_per_token(config)) ** -0.15, tokens=tokens)
    assert cli.main(["sweep", str(path), "--train", "false"]) == 0
    (law,) = read_json(path.parent / "sweep" / "sweep_results.json")["laws"]
    assert (law["exponent"], law["offset"]) == pytest.approx((-0.15, 0.6), abs=0.01)
    page = (path.parent / "sweep" / "report" / "report.html").read_text("utf-8")
    assert "1 of 5 runs are not finished" in page
    assert 'alt="loss by compute"' in page


class Fits:
    """Stands for the processes: notes commands, leaves finished runs, fails when told to."""

    def __init__(self, sweep, status=0):
        self.runs, self.status, self.commands = {str(run.folder): run for run in sweep.runs}, status, []

    def __call__(self, command, check):
        self.commands.append(command)
        if self.status == 0:
            pretend(self.runs[command[command.index("--run_dir") + 1]], 1.0 - 0.01 * len(self.commands))
        return subprocess.CompletedProcess(command, self.status)


def test_only_what_is_missing_is_trained(recipe, monkeypatch):
    path = recipe()
    sweep = read_sweep(str(path), {})
    monkeypatch.setattr(subprocess, "run", fits := Fits(sweep))
    assert cli.main(["sweep", str(path)]) == 0
    assert len(fits.commands) == 6
    for command in fits.commands:
        assert command[:4] == [sys.executable, "-m", "nanochat_lit", "fit"]
        assert command[-2:] == ["--ckpt_path", "last"]
    assert "--data.tokenizer" not in fits.commands[0]
    assert fits.commands[1][fits.commands[1].index("--data.tokenizer") + 1] == str(sweep.runs[0].folder / "tokenizer")
    (sweep.runs[4].folder / "plan.json").write_text('{"num_steps": 99}')  # as if it had been stopped at step 10
    assert cli.main(["sweep", str(path)]) == 0
    assert [command[command.index("--run_dir") + 1] for command in fits.commands[6:]] == [str(sweep.runs[4].folder)]


def test_another_sweep_in_the_same_folder_is_refused(recipe, monkeypatch, capsys):
    path = recipe()
    sweep = read_sweep(str(path), {})
    monkeypatch.setattr(subprocess, "run", fits := Fits(sweep))
    assert cli.main(["sweep", str(path)]) == 0
    assert cli.main(["sweep", str(path), "--options", '{"model.warmup": 3}']) == 2
    assert "was started with other options" in capsys.readouterr().err
    fit = yaml.safe_load(path.read_text("utf-8"))["fit"]
    Path(fit).write_text(Path(fit).read_text("utf-8") + "# changed\n", encoding="utf-8")
    assert cli.main(["sweep", str(path)]) == 2
    assert len(fits.commands) == 6


@pytest.mark.parametrize(("status", "expected"), [(1, 2), (130, 130)])
def test_a_run_that_fails_ends_the_sweep(recipe, monkeypatch, capsys, status, expected):
    path = recipe()
    monkeypatch.setattr(subprocess, "run", fits := Fits(read_sweep(str(path), {}), status))
    assert cli.main(["sweep", str(path)]) == expected
    assert len(fits.commands) == 1
    assert ("exited with status 1" if status == 1 else "interrupted") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": []}, "depths is []"),
        ({"depths": [2, 2]}, "depths contains a duplicate"),
        ({"flops_budgets": [-1.0]}, "flops_budgets is [-1.0]"),
        ({"options": {"model.depth": 3}}, "options sets model.depth"),
        ({"speed": 1}, "it has no speed"),
        ({"seeds": [1]}, "it has no seeds"),
    ],
)
def test_mistakes(recipe, changes, message, capsys):
    assert cli.main(["sweep", str(recipe(**changes)), "--dry_run"]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_finished(recipe, capsys):
    assert cli.main(["sweep", str(recipe()), "--train", "false"]) == 2
    assert "has no finished run" in capsys.readouterr().err


@pytest.fixture
def variants(tmp_path, write_recipe):
    """A sweep of toy runs: a reference of 4 steps, half the tokens per step, and another learning rate, with two seeds."""

    def write(**changes):
        content = {
            "run_dir": str(tmp_path / "sweep"),
            "fit": str(write_recipe({"eval_every": 0})),
            "options": {"data.val_docs": 5},
            "variants": {"reference": {}, "half": {"model.tokens_per_step": 256}, "fast": {"model.matrix_lr": 0.2}},
            "seeds": [1, 2],
            "equal": "tokens",
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False), encoding="utf-8")
        return path

    return write


class FitsHere:
    """Runs the processes of `fit` in this one, and others as they are."""

    def __init__(self):
        self.folders, self.run = [], subprocess.run

    def __call__(self, command, **options):
        if command[0] != sys.executable:
            return self.run(command, **options)
        self.folders.append(Path(command[command.index("--run_dir") + 1]).name)
        return subprocess.CompletedProcess(command, cli.main(command[3:]))


@pytest.mark.slow
def test_real_variants_with_equal_tokens(variants, monkeypatch, capsys):
    """Half the tokens per step takes twice the steps; what is finished is not trained again."""
    path = variants(seeds=[1], variants={"reference": {}, "half": {"model.tokens_per_step": 256}})
    monkeypatch.setattr(subprocess, "run", fits := FitsHere())
    for _ in range(2):
        assert cli.main(["sweep", str(path)]) == 0
        assert fits.folders == ["reference_seed1", "reference", "half", "half_seed1"]
        assert "bits per byte (one seed)" in capsys.readouterr().out
    first, second = read_json(path.parent / "sweep" / "sweep_results.json")["runs"]
    assert (first["steps"], second["steps"]) == (4, 8)
    assert first["tokens"] == second["tokens"]
    assert 0 < first["seconds"] < 60


def test_differences_are_those_of_the_same_seeds(variants, capsys):
    path = variants()
    for run, val_bpb in zip(read_sweep(str(path), {}).runs, (2.0, 1.9, 2.1, 2.2, 2.06, 2.1), strict=True):
        pretend(run, val_bpb, tokens=2048)
    assert cli.main(["sweep", str(path), "--train", "false"]) == 0
    low, high = -0.12 - 12.7062 * 0.02, -0.12 + 12.7062 * 0.02  # -0.1 and -0.14: standard error 0.02
    assert f"half: -0.1200 bits per byte (95% interval {low:+.4f} to {high:+.4f})" in capsys.readouterr().out
    reference, half, fast = read_json(path.parent / "sweep" / "sweep_results.json")["variants"]
    assert reference["mean"] == 0
    assert half["differences"] == pytest.approx({"1": -0.1, "2": -0.14})
    assert (fast["mean"], fast["low"]) == pytest.approx((0.0, -12.7062 * 0.1), rel=1e-4)
    page = (path.parent / "sweep" / "report" / "report.html").read_text("utf-8")
    assert 'alt="difference to the first variant"' in page


def test_equal_time_is_the_median_of_all_rounds(variants, monkeypatch):
    """Half the tokens cost half as much in two rounds, 0.7 times as much in one, which does not decide."""
    path = variants(equal="time", fit="recipes/cpu_text.yaml", options={"model.num_steps": 120})
    plan = read_sweep(str(path), {})
    pretend_variant(plan.runs[0].folder, 120, 2.0)
    calls = []

    def measure(command):
        folder = Path(command[command.index("--run_dir") + 1])
        calls.append(folder.name)
        slow = 1.4 if calls.count("half") == 2 else 1.0
        pretend_variant(folder, 8, slow * (1.0 if folder.name == "half" else 2.0))

    plan.set_horizons(measure)
    assert calls == ["reference", "half", "fast"] * 3
    assert plan.horizons == {"half": 240, "fast": 120}
    more = replace(plan, variants={**plan.variants, "added": {}})
    more.set_horizons(measure)
    assert calls[9:] == ["reference", "added"] * 3
    assert more.horizons == {"half": 240, "fast": 120, "added": 120}
    assert "--model.num_steps 240" in " ".join(plan.runs[1].arguments)


def pretend_variant(folder, steps, cpu_s):
    write_json(folder / "plan.json", {"num_steps": steps})
    write_json(folder / "sessions.json", [{"device": "cpu"}])
    rows = [f"{step},{30 * step},{9.0 + cpu_s * step}" for step in range(1, steps + 1)]  # the first step has cost more
    (folder / "metrics.csv").write_text("\n".join(["step,seconds,cpu_seconds", *rows]) + "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds is []"),
        ({"seeds": [1, 1]}, "seeds contains a duplicate"),
        ({"equal": "steps"}, "equal is 'steps'"),
        ({"variants": {"a/b": {}}}, "variant 'a/b'"),
        ({"variants": {"a": {}, "b": {"model.num_steps": 3}}}, "sets model.num_steps"),
        ({"variants": {"a": {}, "b": {"data.seed": 3}}}, "options sets data.seed"),
        ({"depths": [2]}, "it has no depths"),
    ],
)
def test_mistakes_of_variants(variants, changes, message, capsys):
    assert cli.main(["sweep", str(variants(**changes)), "--dry_run"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_toy_runs_with_a_kill(recipe, monkeypatch, capfd):
    """Six real runs of a few seconds; the second is killed and goes on from its checkpoint."""
    path = recipe(options={"data.val_docs": 5, "checkpoint_every": 1, "model.warmup": 1})
    sweep = read_sweep(str(path), {})
    process = subprocess.Popen([sys.executable, "-m", "nanochat_lit", "sweep", str(path)])
    victim = sweep.runs[1].folder
    until = time.monotonic() + 300
    while not list(victim.glob("checkpoints/step*.ckpt")) and time.monotonic() < until:
        time.sleep(0.02)
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for child in map(int, found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    assert process.wait(60) == 2
    assert sweep.runs[0].finished() is not None
    assert cli.main(["sweep", str(path)]) == 0
    runs = [run.finished() for run in sweep.runs]
    assert len(runs[1].sessions) >= 1
    for planned, run in zip(sweep.runs, runs, strict=True):
        assert run.last["total_flops"] == pytest.approx(planned.budget, rel=0.25)
    results = json.loads((path.parent / "sweep" / "sweep_results.json").read_text("utf-8"))
    assert len(results["runs"]) == 6
    assert all(np.isfinite(row["val_bpb"]) for row in results["runs"])
    before = {run.folder: (run.folder / "metrics.csv").stat().st_mtime_ns for run in sweep.runs}
    assert cli.main(["sweep", str(path)]) == 0  # nothing is left to do
    assert before == {run.folder: (run.folder / "metrics.csv").stat().st_mtime_ns for run in sweep.runs}
    assert len(re.findall(r": finished$", capfd.readouterr().err, flags=re.MULTILINE)) >= 7
    assert all(read_metrics(run.folder / "metrics.csv") for run in sweep.runs)

"""What a run says about itself: every figure against its definition, every logger once."""

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanochat_lit import cli
from nanochat_lit.common.paths import read_json
from nanochat_lit.training.run_records import read_metrics

KEPT = ("train_loss", "tokens", "seconds", "tokens_per_s", "mfu", "lr_multiplier", "muon_momentum", "val_bpb")


def test_every_row_has_every_figure(pretrained):
    """Of the toy run: 4 steps, each logged, of two micro-batches of 4 x 64 tokens; warmup 1."""
    rows = {step: row for step, row in read_metrics(pretrained / "metrics.csv").items() if step}
    plan = read_json(pretrained / "plan.json")
    for step, row in rows.items():
        assert set(KEPT) - {"val_bpb"} <= row.keys()
        assert row["total_flops"] == row["tokens"] * plan["flops_per_token"] == 512 * step * plan["flops_per_token"]
        assert row["grad_norm"] > 0
        assert row["mfu"] > 0
        assert 0 < row["step_time_p50"] <= row["step_time_p95"]
        assert row["tokens_per_s"] * row["step_time_p95"] >= 512 * 0.99, "one step a window"
        assert 0 < row["data_wait"] < 1
        assert 0.1 < row["memory_gib"] < 64
    names = ["lm_head", "wte", "value_embeds", "resid_lambdas", "x0_lambdas", "smear"]
    rates = {name.removeprefix("lr/"): value for name, value in rows[4].items() if name.startswith("lr/")}
    assert list(rates)[:6] == names
    assert all(name.startswith("muon_") for name in list(rates)[6:])
    for name, rate in rates.items():
        ratio = rate / rows[1][f"lr/{name}"]
        assert ratio == pytest.approx(rows[4]["lr_multiplier"] / rows[1]["lr_multiplier"])
    losses = [row["train_loss"] for row in rows.values()]
    weights = [0.95**age for age in (3, 2, 1, 0)]
    average = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert rows[4]["train_loss_ema"] == pytest.approx(average)
    assert rows[4]["seconds"] >= sum(512 / row["tokens_per_s"] for row in rows.values()), "validation is not training"


def test_loggers_of_the_recipe_get_each_row_once(write_recipe, pretrained, tmp_path, monkeypatch, capsys):
    """TensorBoard, and a stand-in for W&B, which is a logger by class_path like any other. Steps are logged by threes."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    loggers = [
        {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "tb")}},
        {"class_path": "observed_run.Everything", "init_args": {"path": str(tmp_path / "everything.jsonl")}},
        {"class_path": "nanochat_lit.training.run_records.MetricsFile", "init_args": {"folder": str(tmp_path)}},
    ]
    trainer = {"accelerator": "cpu", "devices": 1, "logger": loggers}
    recipe = write_recipe(
        {"num_steps": 7, "eval_every": 0}, {"tokenizer": str(pretrained / "tokenizer")}, trainer=trainer
    )
    assert cli.main(["fit", "--config", str(recipe), "--log_every", "3"]) == 0
    run = recipe.parent / "run"
    rows = read_metrics(run / "metrics.csv")
    assert list(rows) == [0, 1, 3, 6, 7]
    assert not (tmp_path / "metrics.csv").exists(), "there is one metrics.csv, that of the run"
    lines = [json.loads(line) for line in (tmp_path / "everything.jsonl").read_text("utf-8").splitlines()]
    assert [step for step, _ in lines] == [0, 1, 3, 6, 7, 7]  # val_bpb before, the rows, val_bpb at the end
    for step, metrics in lines:
        assert metrics.items() <= rows[step].items()
    (events,) = (tmp_path / "tb").rglob("events.*")
    accumulator = EventAccumulator(str(events)).Reload()
    assert set(accumulator.Tags()["scalars"]) >= {*KEPT, "train_loss_ema", "grad_norm", "lr/wte"}
    for name in ("train_loss", "grad_norm", "val_bpb"):
        found = {event.step: event.value for event in accumulator.Scalars(name)}
        assert found == pytest.approx({step: row[name] for step, row in rows.items() if name in row}, rel=1e-6)
        assert len(accumulator.Scalars(name)) == len(found)
    assert not (run / "tensorboard").exists()
    check_lines(capsys.readouterr().err, rows)


def check_lines(err, rows):
    """Piped: a line for each logged step, and a summary."""
    lines = [line for line in err.splitlines() if line.startswith("step ") and "/7" in line]
    assert [line.split(" | ")[0] for line in lines] == [f"step {step}/7" for step in (1, 3, 6, 7)]
    assert lines[-1].split(" | ")[1] == f"loss {rows[7]['train_loss_ema']:.4f}"
    assert "tok/s" in lines[-1]
    assert "ETA 0m00s" in lines[-1]
    (summary,) = [line for line in err.splitlines() if line.startswith("trained ")]
    time, tokens, flops, speed, *_, memory = summary.split(" | ")
    assert time.startswith("trained 7 steps in 0m")
    assert tokens == "3,584 tokens"
    assert flops == f"{rows[7]['total_flops']:.3g} FLOPs"
    assert math.isfinite(float(speed.removesuffix(" tok/s").replace(",", "")))
    assert memory.startswith("peak memory ")


def test_a_logger_must_be_named(write_recipe, capsys):
    recipe = write_recipe(trainer={"accelerator": "cpu", "devices": 1, "logger": True})
    assert cli.main(["fit", "--config", str(recipe)]) == 2
    assert "give the class_path" in capsys.readouterr().err

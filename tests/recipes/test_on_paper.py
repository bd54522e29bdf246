"""The estimate of the speedrun in recipes/docs/results.md: every number of its table, from `plan` and the formulas beside it."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from nanochat_lit import cli

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = (
    (ROOT / "recipes/docs/results.md")
    .read_text("utf-8")
    .split("## On paper: the d24 speedrun on H100s")[1]
    .split("\n## ")[0]
)
GPUS = {1: 16, 8: 16, 64: 8}
"""Rows at once."""
LINK = 370e9
CROPPED = 0.346


@pytest.fixture(scope="module")
def plans():
    def planned(gpus, strategy):
        with redirect_stdout(StringIO()) as out:
            options = ["--gpus", str(gpus), "--strategy", strategy, "--micro_batch_size", str(GPUS[gpus]), "--json"]
            assert cli.main(["plan", "--depth", "24", "--target_param_data_ratio", "8", *options]) == 0
        return json.loads(out.getvalue())

    return {(gpus, strategy): planned(gpus, strategy) for gpus in GPUS for strategy in ("ddp", "zero")}


def seconds(plan, gpus):
    """C, S and M of the chapter."""
    cost, step, training = plan["cost"], plan["optimizer_step_of_a_device"], plan["training"]
    speed = cost["peak_flops_per_s"] * cost["mfu"]
    compute = training["total_flops"] / training["num_steps"] / (gpus * speed)
    return compute, step["sent_bytes"] / LINK, step["muon_flops"] / speed


def column(plans, gpus):
    """What the table should say of this number of GPUs."""
    ddp, zero = plans[gpus, "ddp"], plans[gpus, "zero"]
    hours = {}
    for strategy, plan in (("ddp", ddp), ("zero", zero)):
        low, most = plan["cost"]["hours"], sum(seconds(plan, gpus)) * plan["training"]["num_steps"] / 3600
        hours[strategy] = (low, most)
    training = ddp["training"]
    compute = seconds(ddp, gpus)[0]
    per_s = training["tokens_per_step"] / compute
    dollars = [gpus * 3 * value for value in hours["zero"]]
    return [
        f"{GPUS[gpus]} x {training['micro_batches_per_step']}",
        *(f"{plan['memory_bytes']['total'] / 2**30:.1f} GiB" for plan in (ddp, zero)),
        f"{1000 * compute:,.0f} ms",
        *(f"{plan['optimizer_step_of_a_device']['sent_bytes'] / 1e9:.1f} GB" for plan in (ddp, zero)),
        *(f"{1000 * seconds(plan, gpus)[part]:.0f} ms" for part in (1, 2) for plan in (ddp, zero)),
        *("{:.2f} to {:.2f} h".format(*hours[strategy]) for strategy in ("ddp", "zero")),
        "${:.0f} to ${:.0f}".format(*dollars),
        f"{per_s / 1e6:.2f} M",
        f"{per_s / gpus / (1 - CROPPED) / 1e3:.0f} K",
    ]


def test_the_table(plans):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in CHAPTER.splitlines() if line.startswith("|")
    ]
    assert rows[0][1:] == ["1 GPU", "8 GPUs", "64 GPUs"]
    for index, gpus in enumerate(GPUS, start=1):
        assert [row[index] for row in rows[2:]] == column(plans, gpus)


def test_the_formulas(plans):
    """What the text says beside the table, and that the recipe is the one that was planned."""
    plan = plans[8, "zero"]
    training, parameters = plan["training"], plan["parameters"]
    assert f"{training['total_flops']:.3e}".replace("e+", "e") in CHAPTER
    assert f"{training['num_steps']:,} steps" in CHAPTER
    assert f"step of {training['tokens_per_step']:,} tokens" in CHAPTER
    gradients = 4 * (parameters["transformer_matrices"] + parameters["lm_head"]) + 2 * (
        parameters["wte"] + parameters["value_embeds"]
    )
    assert f"{gradients / 1e9:.1f} GB" in CHAPTER
    for gpus in (8, 64):
        assert plans[gpus, "ddp"]["optimizer_step_of_a_device"]["sent_bytes"] == pytest.approx(
            2 * (gpus - 1) / gpus * gradients, rel=1e-6
        )
    compute = seconds(plan, 8)[0]
    assert f"{2 / 3 * 1000 * compute / training['micro_batches_per_step']:.0f} ms at 8" in CHAPTER
    assert f"{2 / 3 * 1000 * seconds(plans[64, 'zero'], 64)[0]:.0f} ms at 64" in " ".join(CHAPTER.split())
    assert f"u = {4.330784131228946e19 / (10949.46713 * 8 * 989e12):.3f}" in CHAPTER
    assert f"u = {training['total_flops'] / (99 * 60 * 8 * 989e12):.3f}" in CHAPTER
    one_card = [1000 * plans[64, name]["optimizer_step_of_a_device"]["sent_bytes"] / 47e9 for name in ("ddp", "zero")]
    assert "{:.0f} ms (ddp) and {:.0f} ms (zero)".format(*one_card) in CHAPTER
    recipe = yaml.safe_load((ROOT / "recipes/gpt2_speedrun.yaml").read_text("utf-8"))
    assert recipe["data"]["init_args"]["micro_batch_size"] == GPUS[8]
    assert recipe["data"]["init_args"]["num_workers"] == 4
    assert (recipe["trainer"]["devices"], recipe["trainer"]["strategy"]) == (8, "zero")

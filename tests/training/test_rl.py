"""`fit` of the RL stage: what a run leaves, that it learns, that its options do what they say, and bad settings."""

import json

import pytest
import torch
import yaml

from nanochat_lit import cli, load_export
from nanochat_lit.common.paths import read_json
from nanochat_lit.training.run_records import read_metrics

FIGURES = {"reward", "train_accuracy", "format_rate", "completion_len", "unfinished", "mixed_groups", "entropy"}
VALIDATION = {"val_accuracy", "val_pass@1", "val_pass@2", "val_kl"}


def fit(recipe, *options):
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    return read_metrics(recipe.parent / "run" / "metrics.csv")


@pytest.fixture(scope="module")
def finished(write_rl_recipe):
    recipe = write_rl_recipe()
    return recipe, fit(recipe)


def test_a_run_says_what_happened(finished):
    recipe, metrics = finished
    run = recipe.parent / "run"
    assert [step for step, row in metrics.items() if row.keys() >= VALIDATION] == [0, 2, 4]
    assert metrics[0]["val_kl"] == pytest.approx(0, abs=1e-6)
    assert 1e-5 < metrics[2]["val_kl"] < metrics[4]["val_kl"] < 1
    rows = [metrics[step] for step in (1, 2, 3, 4)]
    for row in rows:
        assert row.keys() >= FIGURES | {"tool_use", "train_loss", "grad_norm"}
        assert row["reward"] == row["train_accuracy"]
        assert 0 < row["completion_len"] <= 20
        assert 0 < row["entropy"] < 6.24  # ln 512
    assert any(0 < row["reward"] < 1 and row["grad_norm"] > 0 for row in rows)
    provenance = read_json(run / "export" / "provenance.json")
    assert (provenance["stage"], provenance["val_accuracy"]) == ("rl", pytest.approx(metrics[4]["val_accuracy"]))
    assert (
        provenance["hyper_parameters"]
        == read_json(run.parents[0] / "run" / "export" / "provenance.json")["hyper_parameters"]
    )
    model, _ = load_export(run / "export", device="cpu", compute_dtype="float32")
    base, _ = load_export(yaml.safe_load(recipe.read_text())["model"]["init_args"]["base"], compute_dtype="float32")
    assert not torch.equal(model.lm_head.weight, base.lm_head.weight)
    samples = (run / "samples.md").read_text("utf-8")
    assert samples.count("## Step") == 2
    assert "- **say " in samples
    assert "(wrong)" in samples or "(right)" in samples


def test_rates_come_from_the_base(finished):
    """0.5 of what the toy was pretrained with, at its batch of 512 tokens; the cells of the log are the rates in use."""
    recipe, metrics = finished
    base = read_json(recipe.parent / "run" / "export" / "provenance.json")["hyper_parameters"]
    assert base["tokens_per_step"] == 512
    assert base["matrix_lr"] == 0.02
    muon = next(value for name, value in metrics[1].items() if name.startswith("lr/muon"))
    assert muon == pytest.approx(0.5 * 0.02 * (512 / 2**19) ** 0.5)


def test_it_learns(write_rl_recipe):
    """Answers of twelve words are right, which a few are at the start."""
    model = {"num_steps": 15, "eval_every": 0, "questions_per_step": 8, "num_samples": 8, "matrix_lr": 0.3}
    model |= {"embedding_lr": 3.0, "unembedding_lr": 0.1, "warmdown": 0.0}
    metrics = fit(write_rl_recipe(model, {"micro_batch_size": 64, "val_samples": 0}))
    first, last = (sum(metrics[step]["reward"] for step in steps) / 5 for steps in (range(1, 6), range(11, 16)))
    assert last > first + 0.2, (first, last)


def test_micro_batches_add_up(finished, write_rl_recipe):
    """Each token counts the same, whatever batch it came in: equal within 1e-5 after four steps."""
    metrics = fit(write_rl_recipe(data={"micro_batch_size": 16}))
    for step, row in finished[1].items():
        for name in {"train_loss", "grad_norm", "reward", "entropy"} & row.keys():
            assert metrics[step][name] == pytest.approx(row[name], abs=1e-5), (step, name)


def test_two_updates_on_the_same_answers(write_rl_recipe):
    """Clipping and divergence on: the first step is at the start model, and answers are made for every second step."""
    model = {"updates_per_batch": 2, "clip_ratio": 0.2, "kl_coefficient": 0.1, "format_reward": 0.5}
    metrics = fit(write_rl_recipe(model))
    assert metrics[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[2]["kl"] > 0
    assert "reward" in metrics[1]
    assert "reward" in metrics[3]
    assert "reward" not in metrics[2]
    assert "reward" not in metrics[4]


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_other_precisions_learn_too(write_rl_recipe, dtype):
    """Finite figures and weights that move; rollouts are sampled from other roundings, so nothing is compared closely."""
    recipe = write_rl_recipe({"num_steps": 2, "eval_every": 0, "kl_coefficient": 0.1})
    metrics = fit(recipe, "--compute_dtype", dtype)
    assert all(metrics[step]["grad_norm"] > 0 for step in (1, 2))
    assert all(abs(metrics[step]["train_loss"]) < 10 and 0 <= metrics[step]["reward"] <= 1 for step in (1, 2))
    assert metrics[1]["kl"] == pytest.approx(0, abs=1e-3)


def test_a_checkpoint_is_validated(finished, capsys):
    recipe, metrics = finished
    assert cli.main(["validate", "--config", str(recipe), "--ckpt_path", "last"]) == 0
    shown = capsys.readouterr().out
    assert "val_accuracy" in shown
    assert str(metrics[4]["val_accuracy"])[:6] in shown


def test_rewards_of_options(finished, write_rl_recipe):
    """The same answers in the first step, which an answer's length makes cheaper."""
    metrics = fit(write_rl_recipe({"length_penalty": 0.4, "num_steps": 1, "eval_every": 0}))
    before, row = finished[1][1], metrics[1]
    assert row["completion_len"] == before["completion_len"]
    assert row["reward"] == pytest.approx(before["reward"] - 0.4 * row["completion_len"] / 20, abs=1e-6)


def test_a_mixture_of_tasks_with_partial_rewards(write_rl_recipe, tmp_path):
    """Calculations that are never right earn a part for the numbers that are in their calls; talk is judged as talk."""
    recipe = write_rl_recipe({"partial_reward": 0.5, "num_steps": 1, "eval_every": 0})
    content = yaml.safe_load(recipe.read_text())
    talk = content["data"]["init_args"]["train"]
    sums = [
        {"messages": [{"role": "user", "content": f"{n} + 1"}], "category": "sums", "expect": {"number": "-7"}}
        for n in range(9)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    both = {"talk": talk, "sums": {**talk, "init_args": {"path": str(tmp_path / "sums.jsonl")}}}
    mixture = {"class_path": "nanochat_lit.tasks.base.TaskMixture", "init_args": {"tasks": both}}
    content["data"]["init_args"]["train"] = mixture
    recipe.write_text(yaml.safe_dump(content))
    (row,) = [row for row in fit(recipe).values() if "reward" in row]
    assert row["reward"] >= row["train_accuracy"]


def test_questions_without_room_are_left_out(write_rl_recipe, tmp_path, capsys):
    rows = [
        {"messages": [{"role": "user", "content": text}], "category": "talk", "expect": {"min_words": 5}}
        for text in ("say the", "say cat", "say " + "the cat " * 40)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ("--data.train.path", str(path), "--data.val.path", str(path), "--model.num_steps", "1")
    metrics = fit(write_rl_recipe(), *options)
    assert "1 of 3 questions leave no space for an answer" in capsys.readouterr().err
    assert metrics[1]["val_accuracy"] <= 2 / 3, "the question that was not asked counts as wrong"


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"num_samples": 1}, {}, "num_samples is 1; use at least 2"),
        ({"temperature": 0.0}, {}, "temperature is 0.0; all answers"),
        ({"updates_per_batch": 2}, {}, "use clip_ratio"),
        ({"clip_ratio": 1.5}, {}, "clip_ratio is 1.5"),
        ({"kl_coefficient": -1.0}, {}, "kl_coefficient is -1"),
        ({"length_penalty": -1.0}, {}, "length_penalty is -1"),
        ({"partial_reward": 1.0}, {}, "partial_reward is 1"),
        ({"max_new_tokens": 0}, {}, "max_new_tokens is 0"),
        ({"base": "nowhere"}, {}, "nowhere does not exist"),
        ({"num_steps": 0}, {}, "num_steps is 0"),
        ({}, {"micro_batch_size": 3}, "are not a multiple of micro_batch_size 3; use 2"),
        ({}, {"val_samples": -1}, "val_samples is -1"),
        ({}, {"val_questions": 0}, "val_questions is 0"),
    ],
)
def test_bad_settings(write_rl_recipe, capsys, model, data, message):
    assert cli.main(["fit", "--config", str(write_rl_recipe(model, data))]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) <= 3
    assert "Traceback" not in err


def test_missing_questions_are_named(write_rl_recipe, capsys):
    assert cli.main(["fit", "--config", str(write_rl_recipe()), "--data.train.path", "none.jsonl"]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_ranks_that_cannot_share(write_rl_recipe, capsys):
    assert cli.main(["fit", "--config", str(write_rl_recipe()), "--trainer.devices", "3"]) == 2
    assert "questions_per_step 4 is not a multiple of 3 ranks; use 6" in capsys.readouterr().err

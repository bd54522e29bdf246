"""CORE and ChatCORE while a model trains: the figures of the command on the same weights, in time, and errors before it."""

import json

import pytest
import yaml

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine import sandbox
from nanochat_lit.evaluation.chat_core import code_runner
from nanochat_lit.training.callbacks.evaluators import ChatCoreEvaluator, figures_of
from nanochat_lit.training.run_records import read_metrics

CLASSES = "nanochat_lit.training"


def with_callback(recipe, name, **arguments):
    content = yaml.safe_load(recipe.read_text("utf-8"))
    content["trainer"]["callbacks"] = [{"class_path": f"{CLASSES}.{name}", "init_args": arguments}]
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe


def test_core_in_a_run_is_core_of_its_export(write_recipe, core_bundle, capsys):
    recipe = with_callback(write_recipe(), "CoreEvaluator", bundle=str(core_bundle), max_per_task=20, every=2)
    run = recipe.parent / "run"
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert "step 4: mean of 4 tasks, partial CORE" in capsys.readouterr().err
    metrics = read_metrics(run / "metrics.csv")
    assert [step for step, row in metrics.items() if "core_partial" in row] == [2, 4]
    options = ["--bundle", str(core_bundle), "--max_per_task", "20", "--compute_dtype", "float32", "--json", "true"]
    assert cli.main(["evaluate", "core", "--model", str(run / "export"), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {name: metrics[4][name] for name in figures_of(report)} == pytest.approx(figures_of(report))
    assert {"core_partial", "core_partial_v2", "core/copa"} <= set(figures_of(report))
    written = read_json(run / "evaluation" / "step000004" / "core.json")
    assert written["scores"] == report["scores"]
    assert (run / "evaluation" / "step000002" / "core.png").is_file()


def test_the_run_itself_does_not_notice(write_recipe, core_bundle, pretrained):
    recipe = with_callback(write_recipe(), "CoreEvaluator", bundle=str(core_bundle), max_per_task=10, every=1)
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    found, wanted = (read_metrics(run / "metrics.csv") for run in (recipe.parent / "run", pretrained))
    for step, row in wanted.items():
        for name in {"train_loss", "grad_norm", "val_bpb"} & row.keys():
            assert found[step][name] == row[name], (step, name)


def test_chat_core_in_fine_tuning(sft_recipe, tmp_path, capsys):
    rows = [{"question": f"What is {n} plus 1?", "answer": f"It is <<{n}+1={n + 1}>>.\n#### {n + 1}"} for n in range(9)]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = {"tasks": ["gsm8k"], "paths": {"gsm8k": str(path)}, "max_per_task": 4, "max_new_tokens": 8}
    recipe = with_callback(sft_recipe, "ChatCoreEvaluator", **arguments)
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    metrics = read_metrics(tmp_path / "sft" / "metrics.csv")
    assert [step for step, row in metrics.items() if "chat_core_partial" in row] == [3], "only at the end"
    assert metrics[3]["chat_core/gsm8k"] == metrics[3]["chat_core/gsm8k_format"] == 0.0
    report = read_json(tmp_path / "sft" / "evaluation" / "step000003" / "chat_core.json")
    assert report["tasks"][0]["examples"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bundle": "nowhere"}, "nowhere"),
        ({"every": -1}, "every is -1"),
        ({"max_per_task": 0}, "max_per_task is 0"),
        ({"tasks": ["copa", "nothing"]}, "does not have the CORE task nothing"),
    ],
)
def test_errors_come_before_the_first_step(write_recipe, core_bundle, capsys, arguments, message):
    recipe = with_callback(write_recipe(), "CoreEvaluator", **{"bundle": str(core_bundle), **arguments})
    assert cli.main(["fit", "--config", str(recipe)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "step 1/4" not in err


@pytest.mark.parametrize(
    ("letter", "arguments", "message"),
    [
        ("the third", {}, "arc_easy: the letter 'the third' is "),
        ("B", {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_what_does_not_suit_the_model_is_told_before_the_first_step(
    sft_recipe, tmp_path, capsys, letter, arguments, message
):
    """Also where ChatCORE is measured after the last step alone."""
    row = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", letter]}, "answerKey": "A"}
    (tmp_path / "arc.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    arguments = {"tasks": ["arc_easy"], "paths": {"arc_easy": str(tmp_path / "arc.jsonl")}, **arguments}
    recipe = with_callback(sft_recipe, "ChatCoreEvaluator", **arguments)
    assert cli.main(["fit", "--config", str(recipe)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "step 1/3" not in err


def test_where_programs_cannot_be_isolated_it_is_said(monkeypatch, tmp_path, caplog):
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 0}
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr(sandbox, "missing_isolation", lambda: "no Landlock here")
    evaluator = ChatCoreEvaluator(["mmlu", "humaneval"], {"mmlu": str(tmp_path / "mmlu.jsonl")})
    with pytest.raises(UserError, match="humaneval: no Landlock here"):
        evaluator.load()
    assert code_runner(None) is None
    assert "humaneval is skipped: no Landlock here" in caplog.text

"""Bundles: what is read, in which order, and what is wrong with a broken one, told before anything runs."""

import json
import random
import shutil

import pytest
import yaml

from nanochat_lit.common.errors import UserError
from nanochat_lit.evaluation.core import BASELINES, CORE_LABELS, load_bundle


@pytest.fixture
def bundle(core_bundle, tmp_path):
    return shutil.copytree(core_bundle, tmp_path / "bundle")


def test_tasks_are_read_as_they_are_described(core_bundle):
    tasks = {task.label: task for task in load_bundle(core_bundle)}
    assert [(task.kind, task.num_fewshot, task.delimiter, task.baseline) for task in tasks.values()] == [
        ("multiple_choice", 0, " ", 0.5),
        ("multiple_choice", 3, "\nAnswer: ", 0.25),
        ("schema", 0, " ", 0.5),
        ("language_modeling", 2, " ", 0.0),
    ]


def test_rows_are_shuffled_before_the_cap(core_bundle):
    lines = (core_bundle / "eval_data/a/copa.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in lines]
    random.Random(1337).shuffle(expected)
    (task,) = load_bundle(core_bundle, max_per_task=7, labels=["copa"])
    assert task.rows == expected[:7]


def test_both_versions_of_the_baselines(shared):
    tasks = {task.label: task for task in load_bundle(shared / "data/eval_bundle", max_per_task=11)}
    assert tasks["bigbench_language_identification"].baselines() == {"v1": 0.091, "v2": 0.25}
    assert tasks["boolq"].baselines() == {"v1": 0.62, "v2": 0.62}
    assert all(set(BASELINES[version]) <= set(CORE_LABELS) for version in ("v1", "v2"))
    assert len(set(CORE_LABELS)) == 22


def test_a_bundle_may_lack_tasks(shared):
    labels = [task.label for task in load_bundle(shared / "data/eval_bundle", max_per_task=11)]
    assert len(labels) == 11
    assert set(labels) < set(CORE_LABELS)


def test_a_named_task_without_a_file_is_left_out(bundle):
    (bundle / "eval_data/a/copa.jsonl").unlink()
    assert [task.label for task in load_bundle(bundle)] == ["arc_easy", "winograd", "lambada_openai"]
    with pytest.raises(
        UserError, match="does not have the CORE task copa; available: arc_easy, winograd, lambada_openai"
    ):
        load_bundle(bundle, labels=["copa", "winograd"])


def edit(bundle, change):
    path = bundle / "core.yaml"
    content = yaml.safe_load(path.read_text())
    change(content["icl_tasks"])
    path.write_text(yaml.safe_dump(content))


def replace_row(bundle, label, **changes):
    path = bundle / f"eval_data/a/{label}.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), **changes})
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("label", "changes", "message"),
    [
        ("copa", {"gold": 2}, "'gold' is 2, which is not one of the 2 choices"),
        ("copa", {"choices": ["one"]}, "the choices must be a list of at least two texts"),
        ("copa", {"query": None}, "'query' must be text, got None"),
        ("winograd", {"gold": "1"}, "'gold' is '1'"),
        ("winograd", {"context_options": "ab"}, "the choices must be a list"),
        ("winograd", {"continuation": ""}, "'continuation' must be text"),
        ("lambada_openai", {"continuation": 5}, "'continuation' must be text, got 5"),
    ],
)
def test_a_malformed_row_is_named(bundle, label, changes, message):
    replace_row(bundle, label, **changes)
    with pytest.raises(UserError, match=rf"{label}\.jsonl:5: {message}"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tasks: tasks.clear(), "no list of tasks"),
        (lambda tasks: tasks.append(dict(tasks[0])), "names copa twice"),
        (lambda tasks: tasks[0].pop("label"), "task 1: no field 'label'"),
        (lambda tasks: tasks[1].update(icl_task_type="essay"), "task 2: icl_task_type is 'essay'"),
        (lambda tasks: tasks[1].update(num_fewshot=3), "task 2: num_fewshot must be a list"),
        (lambda tasks: tasks[0].update(num_fewshot=[60]), "copa has 60 records and uses 60 others .* at least 61"),
    ],
)
def test_a_malformed_table_is_named(bundle, change, message):
    edit(bundle, change)
    with pytest.raises(UserError, match=message):
        load_bundle(bundle, labels=["copa"])


def test_tasks_that_are_not_of_core_are_left_out(bundle):
    edit(bundle, lambda tasks: tasks[0].update(label="mine"))
    assert [task.label for task in load_bundle(bundle)] == ["arc_easy", "winograd", "lambada_openai"]
    edit(bundle, lambda tasks: [task.update(label=f"mine {number}") for number, task in enumerate(tasks)])
    with pytest.raises(UserError, match="has no CORE tasks"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Eval Task,Random baseline\ncopa,50\n", "no baseline for the task arc_easy"),
        ("Eval Task,Random baseline\ncopa,100\n", r"eval_meta_data\.csv:2: .* below 100"),
        ("Eval Task,Random baseline\ncopa,much\n", r"eval_meta_data\.csv:2: "),
        ("Task,Baseline\ncopa,50\n", r"eval_meta_data\.csv:2: needs the columns"),
    ],
)
def test_malformed_baselines_are_named(bundle, content, message):
    (bundle / "eval_meta_data.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["core.yaml", "eval_meta_data.csv", "eval_data"])
def test_a_missing_part_is_named(bundle, name):
    shutil.move(bundle / name, bundle / "elsewhere")
    with pytest.raises(UserError, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        (0, "max_per_task is 0"),
        (3, r"the task arc_easy has 3 records \(max_per_task; raise it to 4 or more\) and uses 3"),
    ],
)
def test_caps_that_are_too_small(core_bundle, cap, message):
    with pytest.raises(UserError, match=message):
        load_bundle(core_bundle, max_per_task=cap)

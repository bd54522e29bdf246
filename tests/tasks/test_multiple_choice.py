"""MMLU and ARC: letters, both kinds of rows, errors that name the line, the real data."""

import json

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.arc import ARC
from nanochat_lit.tasks.base import Task
from nanochat_lit.tasks.mmlu import MMLU

HUB_ARC = {
    "id": "x",
    "question": "Which is red?",
    "choices": {"text": ["a rose", "the sea", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
BUNDLE_ARC = {"query": "Question: Which is red?", "choices": ["snow", "a rose", "the sea"], "gold": 1}
MMLU_ROW = {"question": "Which is red?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "colours"}


ASKED = "Multiple Choice question: Which is red?\n"
END = "\nRespond only with the letter of the correct answer."


def spoken(conversation):
    return [message["content"] for message in conversation["messages"]]


def write(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_arc_reads_both_kinds_of_rows(tmp_path):
    task = ARC(path=write(tmp_path, HUB_ARC, BUNDLE_ARC), seed=None)
    assert isinstance(task, Task)
    assert spoken(task[0]) == [f"{ASKED}- a rose=1\n- the sea=2\n- snow=3\n{END}", "1"]
    assert task[0]["letters"] == ["1", "2", "3"]
    assert spoken(task[1]) == [f"{ASKED}- snow=A\n- a rose=B\n- the sea=C\n{END}", "B"]
    assert task.evaluate(task[1], " B\n")
    assert not task.evaluate(task[1], "A")
    assert not task.evaluate(task[1], "B or C")


def test_mmlu_reads_plain_and_wrapped_rows(tmp_path):
    task = MMLU(path=write(tmp_path, MMLU_ROW, {"train": MMLU_ROW}), seed=None)
    assert isinstance(task, Task)
    assert task[0] == task[1]
    assert task[0]["subject"] == "colours"
    assert task[0]["messages"][-1]["content"] == "C"
    assert task.evaluate(task[0], "C")
    assert not task.evaluate(task[0], "c")


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (ARC, {**HUB_ARC, "answerKey": "4"}, "'answerKey' is '4', which is not one of the labels 1, 2, 3"),
        (ARC, {**HUB_ARC, "choices": {"text": ["a", "b"], "label": ["1", "2", "3"]}}, "2 choices with 3 labels"),
        (ARC, {**HUB_ARC, "choices": {"texts": ["a", "b"]}}, "'choices' must have the lists 'text' and 'label'"),
        (ARC, {**HUB_ARC, "choices": ["a", "b"]}, "'choices' must have the lists 'text' and 'label'"),
        (ARC, {**HUB_ARC, "question": ""}, "'question' must be text"),
        (ARC, {**BUNDLE_ARC, "gold": 3}, r"'gold' is 3, which is not one of the 3 choices \(0 to 2\)"),
        (ARC, {**BUNDLE_ARC, "choices": ["a"]}, "the choices must be a list of at least two texts"),
        (MMLU, {**MMLU_ROW, "answer": 4}, "'answer' is 4"),
        (MMLU, {**MMLU_ROW, "answer": -1}, "'answer' is -1"),
        (MMLU, {**MMLU_ROW, "answer": "C"}, "'answer' is 'C'"),
        (MMLU, {**MMLU_ROW, "answer": True}, "'answer' is True"),
        (MMLU, {**MMLU_ROW, "choices": ["a", "b", "c"]}, "3 choices, but MMLU questions have 4"),
        (MMLU, {"question": "x"}, "the choices must be a list"),
    ],
)
def test_a_malformed_row_is_named(task, row, message, tmp_path):
    good = HUB_ARC if task is ARC else MMLU_ROW
    with pytest.raises(UserError, match=f"rows.jsonl:2: {message}"):
        task(path=write(tmp_path, good, row))


def test_an_unknown_subset_is_an_error():
    with pytest.raises(UserError, match="subset is 'Easy'; use one of ARC-Easy, ARC-Challenge"):
        ARC("Easy")


@pytest.mark.parametrize(("name", "size"), [("arc_easy", 2376), ("arc_challenge", 1172)])
def test_the_real_arc(name, size, shared):
    rows = [json.loads(line) for line in (shared / f"data/multiple_choice/{name}.jsonl").read_text().splitlines()]
    task = ARC(path=shared / f"data/multiple_choice/{name}.jsonl", seed=None)
    assert len(task) == size
    for place in range(0, size, 50):
        question, answer = (message["content"] for message in task[place]["messages"])
        assert f"- {rows[place]['choices'][rows[place]['gold']]}={answer}\n" in question


def test_the_real_mmlu(shared):
    test, dev = (MMLU(path=shared / f"data/mmlu/mmlu_{split}.jsonl", split=split) for split in ("test", "dev"))
    assert (len(test), len(dev)) == (14042, 285)
    assert len({conversation["subject"] for conversation in map(test.__getitem__, range(len(test)))}) == 57

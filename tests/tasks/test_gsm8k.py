"""GSM8K: calls as parts, numbers compared by value, every worked answer of the real data right."""

import itertools
import json
from decimal import Decimal

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.tasks.base import Task
from nanochat_lit.tasks.gsm8k import GSM8K, answer_parts, extract_answer
from nanochat_lit.tokenizer.chat import validate_conversation

ANSWER = "A minute is 12/60 = $<<12/60=0.2>>0.2.\nSo 50 are <<0.2*50=10>>10 dollars.\n#### 10"


def test_calls_become_parts():
    assert answer_parts(ANSWER) == [
        {"type": "text", "text": "A minute is 12/60 = $"},
        {"type": "python", "text": "12/60"},
        {"type": "python_output", "text": "0.2"},
        {"type": "text", "text": "0.2.\nSo 50 are "},
        {"type": "python", "text": "0.2*50"},
        {"type": "python_output", "text": "10"},
        {"type": "text", "text": "10 dollars.\n#### 10"},
    ]
    assert answer_parts("no call") == [{"type": "text", "text": "no call"}]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so\n#### 72", 72),
        ("#### 1,234,567", 1234567),
        ("####-5", -5),
        ("#### $3.50.", Decimal("3.5")),
        ("#### 10 and #### 11", 10),
        ("the answer is 72", None),
        ("#### none", None),
        ("#### ...", None),
        ("#### 1.2.3", None),
    ],
)
def test_the_number_after_the_marks(text, number):
    assert extract_answer(text) == number


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({"question": "What do 50 minutes cost?", "answer": ANSWER}) + "\n")
    return GSM8K(path=path)


def test_the_number_is_judged_by_its_value(task):
    assert isinstance(task, Task)
    for completion in ("#### 10", "so it is\n#### 10.0", "#### $10"):
        assert task.evaluate(task[0], completion)
    for completion in ("#### 11", "10", "", "#### 0.2 #### 10"):
        assert not task.evaluate(task[0], completion)


def test_an_answer_without_a_number_is_named(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text('{"question": "?", "answer": "many"}\n')
    with pytest.raises(UserError, match=r"gsm8k\.jsonl:1: 'answer' has no number after ####"):
        GSM8K(path=path)


def test_the_real_data(shared):
    task = GSM8K(split="test", path=shared / "data/gsm8k/test.jsonl")
    assert len(task) == 1319
    num_calls = num_computed = 0
    for place in range(len(task)):
        conversation = task[place]
        validate_conversation(conversation)
        parts = conversation["messages"][-1]["content"]
        assert not any("<<" in part["text"] or ">>" in part["text"] for part in parts)
        assert task.evaluate(conversation, "".join(part["text"] for part in parts if part["type"] == "text"))
        for call, output in itertools.pairwise(parts):
            if call["type"] == "python":
                assert output["type"] == "python_output"
                num_calls += 1
                value = calculate(call["text"])
                num_computed += value is not None and abs(float(value) - _number(output["text"])) < 0.01
    assert num_calls > 4000
    assert num_computed > 0.97 * num_calls  # the authors have written some results by hand


def _number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return float("nan")


def test_form_is_not_truth(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": "<<1+1=2>>\n#### 2"}), encoding="utf-8")
    task = GSM8K("test", path)
    assert task.has_form("so it is\n#### 3")
    assert not task.has_form("so it is 2")
    assert not task.evaluate(task[0], "#### 3")

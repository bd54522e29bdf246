"""Preference pairs in each of TRL's formats, and records that are none."""

import json

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import TaskMixture, TaskSlice, grader_of
from nanochat_lit.tasks.preferences import Preferences, TinyWorldPreferences, as_pair
from nanochat_lit.tasks.spelling import SpellWord


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


COLOUR = [user("What colour is the sky?")]
BLUE, GREEN = [answer("Blue.")], [answer("Green.")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": COLOUR, "chosen": BLUE, "rejected": GREEN},
        {"chosen": COLOUR + BLUE, "rejected": COLOUR + GREEN},
        {"prompt": "What colour is the sky?", "chosen": COLOUR + BLUE, "rejected": COLOUR + GREEN},
        {"prompt": "What colour is the sky?", "chosen": "Blue.", "rejected": "Green."},
        {"prompt": COLOUR, "chosen": "Blue.", "rejected": "Green."},
        {"chosen": "What colour is the sky? Blue.", "rejected": "What colour is the sky? Green."},
        {
            "prompt": [{"from": "human", "value": "What colour is the sky?"}],
            "chosen": [{"from": "gpt", "value": "Blue."}],
            "rejected": [{"from": "gpt", "value": "Green."}],
        },
    ],
    ids=["explicit", "implicit", "repeated", "text", "text_answers", "implicit_text", "sharegpt"],
)
def test_formats_of_one_pair(row):
    pair = as_pair({**row, "score": 3})
    assert pair == {"messages": COLOUR + BLUE, "rejected": COLOUR + GREEN, "score": 3}


def test_an_implicit_text_prompt_ends_between_words():
    """As in TRL, whose documentation has this pair."""
    pair = as_pair({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert pair["messages"] == [user("The sky is"), answer("blue.")]
    assert pair["rejected"] == [user("The sky is"), answer("black.")]


def test_earlier_turns_and_tool_calls():
    call = {"type": "function", "function": {"name": "python", "arguments": '{"code": "1+1"}'}}
    chosen = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        answer("Two."),
    ]
    prompt = [user("Hi"), answer("Hello!"), user("1 + 1?")]
    pair = as_pair({"prompt": prompt, "chosen": chosen, "rejected": [answer("Three.")]})
    assert pair["messages"][:3] == pair["rejected"][:3] == prompt
    assert [part["type"] for part in pair["messages"][3]["content"]] == ["python", "python_output", "text"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "'rejected' must be text or a list of messages, got None"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "'prompt' must be text or a list of messages, got 3"),
        ({"prompt": "a", "chosen": [3], "rejected": "c"}, "chosen: message"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "must be different answers"),
        ({"chosen": "blue", "rejected": "green"}, "'chosen' is an answer without a prompt; add the field 'prompt'"),
        ({"chosen": [user("a"), answer("b")], "rejected": [user("c"), answer("d")]}, "to one prompt"),
        ({"prompt": "a", "chosen": [answer("b"), answer("c")], "rejected": "d"}, "chosen: message 2 has role"),
    ],
)
def test_no_pair(row, message, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        Preferences(path)
    assert str(raised.value).startswith(f"{path}:1: ")
    assert message in str(raised.value)


def test_neither_path_nor_hub():
    with pytest.raises(UserError, match=r"no preference pairs: set path to a \.jsonl or \.parquet file"):
        Preferences()


def test_grades_of_the_tiny_world(tmp_path):
    row = {"prompt": "2 * 3?", "chosen": "6. I hope that helps!", "rejected": "6.", "expect": {"number": "6"}}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**row, "prefer": {"all": ["helps"], "max_words": 5}}), encoding="utf-8")
    task = TinyWorldPreferences(path)
    grade = grader_of(TaskSlice(task, 0, 1))
    assert grade is not None
    texts = ["It is 7.", "It is 6.", "6 helps.", "6 helps. Or does it not help?"]
    assert [grade(task[0], text, ()) for text in texts] == [0, 1, 2, 1]
    assert not task.evaluate(task[0], "6 or 7"), "an answer of the pair itself is no part of the question"


def test_answers_without_a_judge(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}), encoding="utf-8")
    assert grader_of(Preferences(path)) is None
    assert grader_of(TaskMixture({"pairs": Preferences(path)})) is None
    spelling = SpellWord(size=2)
    assert grader_of(spelling) == spelling.evaluate

"""Harder arithmetic: right values, distinct items, disjoint splits, and nothing that the conversations ask."""

import re
from itertools import combinations

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.tasks.tiny_world import judge
from nanochat_lit.tiny_world import harder_arithmetic, problems


@pytest.fixture(scope="module")
def items():
    return {split: problems(split, 400) for split in ("train", "val", "test")}


def test_values_are_those_of_the_calculator(items):
    """Questions that are written in symbols."""
    checked = 0
    for item in items["train"]:
        if match := re.search(r"\d+(?: [-+*] \d+)+", item["messages"][0]["content"]):
            assert calculate(match[0]) == item["expect"]["number"], item
            checked += 1
    assert checked > 100


def test_word_problems_say_what_they_expect():
    for operations, operands, value in (("*-", (12, 5, 7), 53), ("--", (100, 20, 30), 50), ("+-", (8, 7, 3), 12)):
        assert harder_arithmetic.value_of(operations, operands) == value


def test_items_differ_and_splits_share_none(items):
    numbers = {
        split: {tuple(re.findall(r"\d+", item["messages"][0]["content"])) for item in own}
        for split, own in items.items()
    }
    assert len(numbers["train"]) > 350
    four = {split: {key for key in own if len(key) == 4 and max(map(int, key)) > 99} for split, own in numbers.items()}
    assert len(four["train"]) > 30
    for one, other in combinations(four, 2):
        assert not four[one] & four[other]


def test_an_answer_is_judged_by_its_number(items):
    item = {"messages": [{"role": "user", "content": "What is 40 + 50 + 60?"}], "expect": {"number": "150"}}
    assert judge(item, "The answer is 150.")
    assert judge(item, "40 and 50 and 60 make 150")
    assert not judge(item, "The answer is 150 or 151.")
    assert not judge(item, "The answer is 90.")
    assert all(judge(own, f"It is {own['expect']['number']}.") for own in items["val"])


def test_training_questions_have_an_answer_that_is_not_judged_by(items):
    """A call of the calculator and its value; numbers of the reference answer are not numbers of the question."""
    for item in items["train"]:
        call, output, text = item["messages"][-1]["content"]
        assert calculate(call["text"]) == output["text"] == item["expect"]["number"]
        assert judge(item, text["text"], [call["text"]])
    item = {**item, "expect": {"number": "7"}}
    assert not judge(item, f"7, not {output['text']}"), "the wrong value is an unrelated number"
    for split in ("val", "test"):
        assert all(len(own["messages"]) == 1 for own in items[split])


def test_the_same_seed_gives_the_same_questions():
    assert problems("test", 20, seed=3) == problems("test", 20, seed=3) != problems("test", 20, seed=4)
    with pytest.raises(UserError, match="unknown split"):
        problems("tests", 1)

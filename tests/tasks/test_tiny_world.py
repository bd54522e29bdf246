"""The judge accepts the reference answers, rejects others, and explains broken files."""

from __future__ import annotations

import json
from random import Random

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Task
from nanochat_lit.tasks.tiny_world import TinyWorldTask, judge
from nanochat_lit.tiny_world.corpus import categories
from nanochat_lit.tiny_world.dialogues import block
from nanochat_lit.tiny_world.turns import item_of


def visible(answer):
    return answer if isinstance(answer, str) else "".join(part["text"] for part in answer if part["type"] == "text")


def calls(answer):
    return [] if isinstance(answer, str) else [part["text"] for part in answer if part["type"] == "python"]


def samples(category, count=400):
    rng = Random(f"judge {category}")
    chains = [block(rng, rng.choice(("train", "test")), category) for _ in range(count)]
    return [(item_of(chain, category), chain[-1].answer) for chain in chains]


def item(**expect):
    return {"messages": [{"role": "user", "content": "What is 12 + 34?"}], "category": "x", "expect": expect}


SAME_FACT = {"Andrej Karpathy created nanochat.", "Andrej Karpathy is the creator of nanochat and nanoGPT."}
"""Who made nanochat and who Karpathy is: each sentence truly answers both questions."""


@pytest.mark.parametrize("category", categories())
def test_reference_answers_are_right(category):
    wrong = [(i, a) for i, a in samples(category) if not judge(i, visible(a), calls(a))]
    assert not wrong, wrong[:3]


@pytest.mark.parametrize("category", [name for name in categories() if name not in ("unknown", "languages")])
def test_answers_to_other_items_are_wrong(category):
    rng = Random(1)
    found = samples(category)
    pairs = [(rng.choice(found), rng.choice(found)) for _ in range(3_000)]
    pairs = [
        (i, b)
        for (i, a), (j, b) in pairs
        if a != b and i["expect"] != j["expect"] and not {visible(a), visible(b)} <= SAME_FACT
    ]
    accepted = [(i, b) for i, b in pairs if judge(i, visible(b), calls(b))]
    assert len(pairs) > 1_500
    assert len(accepted) <= 0.01 * len(pairs), [(i["messages"][-1], b) for i, b in accepted[:3]]


def test_a_call_of_a_function():
    item = {"messages": [], "expect": {"call": {"name": "get_time", "arguments": {"city": "Rome"}}}}
    right = '<tool_call>{"name": "get_time", "arguments": {"city": "Rome"}}</tool_call>'
    assert judge(item, right)
    assert judge(item, right.replace(", ", ",  "))
    for wrong in (
        "It is 14:05 in Rome.",
        right + right,
        right.replace("Rome", "rome"),
        right.replace("}}", "}"),
        right[11:-12],
    ):
        assert not judge(item, wrong), wrong


def test_only_a_refusal_answers_the_unknown():
    unknown = [i for i, _ in samples("unknown")]
    for category in ("facts", "identity", "days", "opposites"):
        for i, (_, answer) in zip(unknown, samples(category), strict=True):
            assert not judge(i, visible(answer))


def test_a_refusal_does_not_assert_a_fact():
    expect = {"refuses": True, "none": ["Paris", "Rome"]}
    assert judge(item(**expect), "I don't know. I have not learned about that.")
    assert judge(item(**expect), "Sorry, I do not know that.")
    assert not judge(item(**expect), "I don't know. The capital is Paris.")
    assert not judge(item(**expect), "The capital is Blorf.")
    assert not judge(item(**expect), "I don't know. " + "but maybe it is so " * 10)


def test_calculations_need_the_call_and_the_number():
    sum_ = item(tool="46", expressions=["12+34", "34+12"])
    assert judge(sum_, "The answer is 46.", ["12+34"])
    assert judge(sum_, "12 + 34 = 46", ["34 + 12"])
    assert not judge(sum_, "The answer is 46.", [])
    assert not judge(sum_, "The answer is 46.", ["12+35"])
    assert not judge(sum_, "The answer is 47.", ["12+34"])
    assert not judge(sum_, "The answer is 46 or 47.", ["12+34"])
    assert not judge(sum_, "The answer is 146.", ["12+34"])
    assert not judge(sum_, "The answer is -46.", ["12+34"])
    assert not judge(sum_, "", ["12+34"])


def test_negative_numbers_and_commas_are_read_as_written():
    assert judge(item(tool="-7", expressions=["3-10"]), "The answer is -7.", ["3-10"])
    assert not judge(item(tool="-7", expressions=["3-10"]), "The answer is 7.", ["3-10"])
    assert judge(item(tool="6384", expressions=["84*76"]), "The answer is 6,384.", ["84*76"])


def test_counting_calls_may_use_either_quote():
    expect = {"tool": "3", "expressions": ["'strawberry'.count('r')"]}
    assert judge(item(**expect), "3 times.", ['"strawberry".count("r")'])
    assert not judge(item(**expect), "3 times.", ["'strawberry'.count('e')"])


@pytest.mark.parametrize(
    ("completion", "is_right"),
    [
        ("apple is spelled a p p l e", True),
        ("a-p-p-l-e", True),
        ("A, P, P, L, E.", True),
        ("apple is spelled a p l e", False),
        ("apple is spelled a p p l e s", False),
        ("apple", False),
        ("a p p l e and p e a r", False),
    ],
)
def test_spellings_are_letter_by_letter(completion, is_right):
    assert judge(item(spelled="apple"), completion) is is_right


def test_phrases_are_whole_words_in_any_case():
    assert judge(item(any=["Mexico City"]), "It is mexico city!")
    assert not judge(item(any=["Oslo"]), "Oslomark")
    assert not judge(item(all=["a", "b"]), "only a")
    assert not judge(item(any=["Paris"], none=["Rome"]), "Paris or Rome")
    assert not judge(item(all=["fox"], min_words=5), "a fox came")


def test_an_expectation_nobody_knows_is_an_error():
    with pytest.raises(UserError, match="colour"):
        judge(item(colour="red"), "red")
    with pytest.raises(UserError, match="has no keys"):
        judge(item(), "red")


def test_a_file_of_items_is_a_task(tmp_path):
    items = [i for i, _ in samples("facts", 5)]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps(i) for i in items) + "\n\n", encoding="utf-8")
    task = TinyWorldTask.load(path)
    assert isinstance(task, Task)
    assert len(task) == 5
    assert task[1] == items[1]
    assert not task.evaluate(task[0], "I don't know.")


def test_categories_of_a_file(tmp_path):
    items = [{**item(any=["a"]), "category": category} for category in ("one", "two", "one", "three")]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    assert list(TinyWorldTask.load(path, ["one", "three"])) == [items[0], items[2], items[3]]
    with pytest.raises(UserError, match=r"no items of four; its categories: one, three, two"):
        TinyWorldTask.load(path, ["one", "four"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "'messages'"),
        ('{"messages": [], "category": "x", "expect": {"any": ["a"]}}', "messages"),
        ('{"messages": [{"role": "user", "content": "x"}], "category": "x", "expect": {"any_of": []}}', "any_of"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "category": "x", "expect": {"any": []}}', "user"),
        ('{"messages": [{"role": "user", "content": "x"}], "category": "x"}', "'expect'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    good = json.dumps(item(any=["a"]))
    path = tmp_path / "broken.jsonl"
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"broken.jsonl:2: .*{message}"):
        TinyWorldTask.load(path)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl"):
        TinyWorldTask.load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"empty\.jsonl.*no items"):
        TinyWorldTask.load(tmp_path / "empty.jsonl")


def test_the_form_of_an_answer_to_a_calculation():
    task = TinyWorldTask([])
    assert task.has_form("The answer is 7.", ["3+5"])
    assert not task.has_form("The answer is 7.", [])
    assert not task.has_form("I don't know.", ["3+5"])


def test_a_wrong_answer_is_as_near_as_its_calls_have_the_numbers():
    task = TinyWorldTask([])
    asked = {"messages": [{"role": "user", "content": "What is 12 + 5 + 12?"}], "expect": {"number": "29"}}
    for calls, credit in (
        ([], 0), (["12+3"], 1 / 3), (["12+12"], 2 / 3), (["12+5", "17+12"], 1), (["12+5+12+5"], 1), (["125"], 0),
    ):  # fmt: skip
        assert task.credit(asked, "", calls) == pytest.approx(credit), calls
    assert task.credit({**asked, "expect": {"any": ["12"]}}, "", ["12+5"]) == 0

"""The texts: well formed, deterministic, right, and many."""

from __future__ import annotations

import ast
import json
import operator
import re
import subprocess
import sys
from itertools import islice
from random import Random

import pytest

from nanochat_lit.data.tiny_world import conversations, documents, examination
from nanochat_lit.data.tiny_world import exam as exam_module
from nanochat_lit.data.tiny_world.calendar import DAYS, MONTHS
from nanochat_lit.data.tiny_world.corpus import DOCUMENT_MIX
from nanochat_lit.data.tiny_world.dialogues import CONVERSATION_MIX
from nanochat_lit.data.tiny_world.facts import CAPITALS, RELATIONS
from nanochat_lit.data.tiny_world.opposites import OPPOSITES
from nanochat_lit.data.tiny_world.phrasings import expand
from nanochat_lit.data.tiny_world.stories import hero, long_story

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv}


def parts_of(conversation):
    for message in conversation["messages"]:
        if isinstance(message["content"], list):
            yield message["content"]


def texts_of(conversation):
    for message in conversation["messages"]:
        if isinstance(message["content"], str):
            yield message["content"]
        else:
            yield from (part["text"] for part in message["content"])


def test_the_same_seed_gives_the_same_texts_in_another_process():
    code = (
        "import json;from itertools import islice;"
        "from nanochat_lit.data.tiny_world import *;"
        "print(json.dumps([list(islice(documents(seed=3), 40)), list(islice(conversations(seed=3), 40)),"
        "examination(seed=3, per_category=3)]))"
    )
    here = [list(islice(documents(seed=3), 40)), list(islice(conversations(seed=3), 40)), examination("test", 3, 3)]
    for hash_seed in ("0", "1"):
        there = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(there.stdout) == here


def test_another_seed_gives_other_texts():
    assert list(islice(documents(seed=1), 20)) != list(islice(documents(seed=2), 20))
    assert list(islice(conversations(seed=1), 20)) != list(islice(conversations(seed=2), 20))


def test_conversations_are_well_formed(conversations_by_split):
    for found in conversations_by_split.values():
        for conversation in found:
            messages = conversation["messages"]
            assert conversation["source"] in CONVERSATION_MIX
            assert 2 <= len(messages) <= 8
            assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
            assert all(isinstance(message["content"], str) for message in messages[::2])
            texts = list(texts_of(conversation))
            assert all(text.strip() == text != "" for text in texts), texts
            assert not any("<|" in text or "{" in text or "[" in text or "  " in text for text in texts), texts
            assert sum(map(len, texts)) <= 900


def test_tool_parts_come_as_call_result_text(conversations_by_split):
    num_calls = 0
    for conversation in conversations_by_split["train"]:
        for parts in parts_of(conversation):
            assert [part["type"] for part in parts] == ["python", "python_output", "text"]
            num_calls += 1
    assert num_calls > 2_000


def test_the_calculator_outputs_are_right(conversations_by_split):
    for conversation in conversations_by_split["train"]:
        for call, output, text in parts_of(conversation):
            sum_ = re.fullmatch(r"(\d+)(//|[-+*])(\d+)", call["text"])
            if sum_:
                a, operation, b = sum_.groups()
                value = OPERATIONS[operation](int(a), int(b))
                assert operation != "//" or value * int(b) == int(a)
            else:
                word, letter = re.fullmatch(r"'(\w+)'\.count\('(\w)'\)", call["text"]).groups()
                value = sum(character == letter for character in word)
            assert output["text"] == str(value)
            if " than " in text["text"]:  # the difference decides a comparison
                winner = min(int(a), int(b)) if "smaller" in text["text"] else max(int(a), int(b))
                assert f"{winner} is" in text["text"]
            else:
                assert str(value) in text["text"]


def test_documents_are_well_formed(documents_by_split):
    for texts in documents_by_split.values():
        for text in texts:
            assert text.strip() == text != ""
            assert "<|" not in text
            assert not re.search(r"[{}\[\]]|  |\.\.", text), text
            assert not re.search(r"\ba [aeio]\w+ named", text), text
            assert 4 <= len(text.split()) <= 260


def test_the_sums_of_the_documents_are_right(documents_by_split):
    lines = re.findall(r"^(\d+) ([-+*/]) (\d+) = (-?\d+)$", "\n".join(documents_by_split["train"]), flags=re.MULTILINE)
    assert len(lines) > 500
    for a, operation, b, value in lines:
        if operation == "/":
            assert int(a) == int(b) * int(value)
        else:
            assert OPERATIONS[operation](int(a), int(b)) == int(value)


def test_the_spellings_of_the_documents_are_right(documents_by_split):
    lines = re.findall(r"(\w+) is spelled ((?:\w )+\w)$", "\n".join(documents_by_split["train"]), flags=re.MULTILINE)
    assert len(lines) > 500
    assert all("".join(letters.split()) == word for word, letters in lines)


def test_every_kind_of_text_comes_up(conversations_by_split):
    assert {conversation["source"] for conversation in conversations_by_split["train"]} == set(CONVERSATION_MIX)
    assert all(weight > 0 for _, weight in DOCUMENT_MIX.values())


def test_there_are_thousands_of_distinct_stories():
    rng = Random(0)
    assert len({long_story(rng, hero(rng)) for _ in range(6_000)}) > 5_900


def test_the_facts_are_consistent():
    assert len(CAPITALS) >= 55
    assert len(set(CAPITALS.values())) == len(CAPITALS)
    assert all(OPPOSITES[OPPOSITES[word]] == word != OPPOSITES[word] for word in OPPOSITES)
    assert (CAPITALS["France"], CAPITALS["Australia"], CAPITALS["Turkey"]) == ("Paris", "Canberra", "Ankara")
    assert (DAYS[0], DAYS[-1], MONTHS[8]) == ("Monday", "Sunday", "September")
    for relation in RELATIONS:
        assert len(set(relation.questions)) == len(relation.questions)


def test_a_pattern_stands_for_all_its_choices():
    assert set(expand("[Hi|Hello] [|you].")) == {"Hi.", "Hi you.", "Hello.", "Hello you."}


def test_examinations_end_with_a_question_and_are_plain_json():
    items = examination("test", seed=1, per_category=40)
    assert json.loads(json.dumps(items)) == items
    counts = {category: sum(item["category"] == category for item in items) for category in exam_module.CATEGORIES}
    assert all(count == 40 for count in counts.values()), counts
    for item in items:
        assert item["messages"][-1]["role"] == "user"
        assert item["expect"]
    keys = [json.dumps(item["messages"]) for item in items]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("seed", [0, 1])
def test_follow_ups_need_the_turn_before(seed):
    items = [item for item in examination("test", seed, 60) if item["category"] == "follow_ups"]
    assert all(len(item["messages"]) >= 3 for item in items)


def test_nothing_of_the_generators_is_a_python_expression_with_names(conversations_by_split):
    for conversation in conversations_by_split["test"]:
        for call, *_ in parts_of(conversation):
            assert not [node for node in ast.walk(ast.parse(call["text"])) if isinstance(node, ast.Name)]

"""The texts: well formed, deterministic, right, and many."""

from __future__ import annotations

import ast
import json
import operator
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from nanochat_lit.tiny_world import conversations, documents, held_out_items, problems, templates
from nanochat_lit.tiny_world.corpus import categories, mixture
from nanochat_lit.tiny_world.dialogues import shares
from nanochat_lit.tiny_world.intents import expand
from nanochat_lit.tiny_world.relations import all_relations, relation
from nanochat_lit.tiny_world.stories import hero, long_story
from nanochat_lit.tiny_world.templates import template

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv}


JSON = re.compile(r'^\{"name": .*\}$|<tool_call>.*?</tool_call>', re.MULTILINE)
"""Functions that are offered, and their calls."""


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
        "from nanochat_lit.tiny_world import *;"
        "print(json.dumps([list(islice(documents(seed=3), 40)), list(islice(conversations(seed=3), 40)),"
        "held_out_items(seed=3, per_category=3)]))"
    )
    here = [list(islice(documents(seed=3), 40)), list(islice(conversations(seed=3), 40)), held_out_items("test", 3, 3)]
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
            assert conversation["source"] in shares()
            if messages[0]["role"] == "system":
                messages = messages[1:]
            assert 2 <= len(messages) <= 8
            assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
            assert all(isinstance(message["content"], str) for message in messages[::2])
            texts = list(texts_of(conversation))
            assert all(text.strip() == text != "" for text in texts), texts
            prose = [JSON.sub("", text) for text in texts]
            assert not any(re.search(r"<\||[{\[]|  ", text) for text in prose), texts
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
            counted = re.fullmatch(r"'(\w+)'\.count\('(\w)'\)", call["text"])
            if counted:
                value = sum(character == counted[2] for character in counted[1])
            else:
                assert re.fullmatch(r"(round\()?[-+*/().\d]+(, 4\))?|(max|min)\([\d.]+, [\d.]+\)", call["text"])
                functions = {"__builtins__": {}, "round": round, "max": max, "min": min}
                value = eval(call["text"], functions)  # Python itself is the reference here
                value = int(value) if value == int(value) else value
            assert output["text"] == str(value)
            assert str(value) in text["text"]
            if call["text"].startswith("m"):
                assert ("smaller" in text["text"]) == call["text"].startswith("min")


def test_functions_are_offered_called_and_answered(conversations_by_split):
    """Calls are of a function that is offered, with its arguments, and answers repeat results; read by json alone."""
    num_calls = num_results = 0
    for conversation in conversations_by_split["train"]:
        texts = [message["content"] for message in conversation["messages"]]
        for asked, said, *more in zip(texts, texts[1:], [*texts[2:], ""], [*texts[3:], "", ""], strict=False):
            if not str(said).startswith("<tool_call>"):
                continue
            offered = {
                one["name"]: one["parameters"] for one in map(json.loads, re.findall(r"^\{.*\}$", asked, re.MULTILINE))
            }
            call = json.loads(said.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            assert call.keys() == {"name", "arguments"}
            assert list(call["arguments"]) == offered[call["name"]]["required"]
            (value,) = call["arguments"].values()
            assert value in asked.split("\n\n")[1]
            num_calls += 1
            if more[0].startswith("<tool_response>"):
                assert value in more[1]
                assert more[0].removeprefix("<tool_response>").removesuffix("</tool_response>") in more[1]
                num_results += 1
    assert num_calls > 200 < num_results + 100


def test_documents_are_well_formed(documents_by_split):
    for texts in documents_by_split.values():
        for text in texts:
            assert text.strip() == text != ""
            assert "<|" not in text
            assert not re.search(r"[{}\[\]]|  |(?<!\.)\.\.(?!\.)", JSON.sub("", text)), text
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
    assert {conversation["source"] for conversation in conversations_by_split["train"]} == set(shares())
    assert all(weight > 0 for _, weight in mixture().values())


def test_there_are_thousands_of_distinct_stories():
    rng = Random(0)
    assert len({long_story(rng, hero(rng)) for _ in range(6_000)}) > 5_900


def test_the_facts_are_consistent():
    capitals = relation("facts", "capital").table
    assert len(capitals) >= 55
    assert len(set(capitals.values())) == len(capitals)
    opposites = relation("opposites", "opposite").table
    assert all(opposites[opposites[word]] == word != opposites[word] for word in opposites)
    assert (capitals["France"], capitals["Australia"], capitals["Turkey"]) == ("Paris", "Canberra", "Ankara")
    days, months, _ = template("days")["lists"].values()
    assert (days[0], days[-1], months[8]) == ("Monday", "Sunday", "September")
    for known in all_relations():
        assert len(set(known.questions)) == len(known.questions)


# A change of the world changes these on purpose.
HASHES = {
    "documents": "b9a1a2e4a658fe93",
    "conversations": "ede89d8c74bf515f",
    "examination": "56e582268d5bf20f",
    "problems": "6705b855b948b9e8",
}


def test_the_texts_have_not_changed():
    written = {
        "documents": [text for seed in (0, 7) for text in islice(documents("train", seed), 300)]
        + list(islice(documents("test", 1), 60)),
        "conversations": [text for seed in (0, 7) for text in islice(conversations("train", seed), 400)]
        + list(islice(conversations("test", 1), 60)),
        "examination": [held_out_items(split, 5, 20) for split in ("train", "val", "test")],
        "problems": [problems(split, 60, 2) for split in ("train", "val", "test")],
    }
    found = {name: sha256(json.dumps(texts).encode()).hexdigest()[:16] for name, texts in written.items()}
    assert found == HASHES


CATEGORY = """
share: 6
documents: 2
relations:
  - name: shape
    table: {a ball: round, a box: square, a coin: round, a door: square, a wheel: round, a brick: square}
    questions: ["What shape is {x}?", "Which shape does {x} have?", "Tell me the shape of {x}.", "How is {x} shaped?"]
    answer: "{X} is {y}."
"""


def test_a_template_file_is_a_category(tmp_path):
    """In another process, with one more file: it is asked, examined and told, and invented names differ from its words."""
    folder = Path(templates.__file__).parent
    shutil.copytree(folder, tmp_path / "tiny_world", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tiny_world" / "templates" / "shapes.yaml").write_text(CATEGORY)
    code = (
        f"import json; from itertools import islice; import nanochat_lit; nanochat_lit.__path__.insert(0, {str(tmp_path)!r});"
        "from nanochat_lit.tiny_world import *; from nanochat_lit.tiny_world.unknown import _known;"
        "items = [item for item in held_out_items('test', 0, 2) if item['category'] == 'shapes'];"
        "asked = sum(c['source'] == 'shapes' for c in islice(conversations(), 500));"
        "told = sum('A wheel is round.' in text for text in islice(documents(), 500));"
        "print(json.dumps([items, asked, told, 'square' in _known()]))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    items, asked, told, is_known = json.loads(there.stdout)
    assert items[0]["expect"]["any"][0] in ("round", "square")
    assert asked > 3
    assert told > 3
    assert is_known


def test_a_pattern_stands_for_all_its_choices():
    assert set(expand("[Hi|Hello] [|you].")) == {"Hi.", "Hi you.", "Hello.", "Hello you."}


def test_examinations_end_with_a_question_and_are_plain_json():
    items = held_out_items("test", seed=1, per_category=40)
    assert json.loads(json.dumps(items)) == items
    counts = {category: sum(item["category"] == category for item in items) for category in categories()}
    assert all(count == 40 for count in counts.values()), counts
    for item in items:
        assert item["messages"][-1]["role"] == "user"
        assert item["expect"]
    keys = [json.dumps(item["messages"]) for item in items]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("seed", [0, 1])
def test_follow_ups_need_the_turn_before(seed):
    items = [item for item in held_out_items("test", seed, 60) if item["category"] in ("follow_ups", "doubts")]
    assert all(len(item["messages"]) >= 3 for item in items)


def test_nothing_of_the_generators_is_a_python_expression_with_names(conversations_by_split):
    for conversation in conversations_by_split["test"]:
        for call, *_ in parts_of(conversation):
            names = {node.id for node in ast.walk(ast.parse(call["text"])) if isinstance(node, ast.Name)}
            assert names <= {"round", "max", "min"}

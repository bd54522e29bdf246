"""No item is in two splits, judged from the texts themselves."""

from __future__ import annotations

import re
from itertools import combinations
from random import Random

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tiny_world import conversations, documents, held_out_items
from nanochat_lit.tiny_world.dialogues import block, shares
from nanochat_lit.tiny_world.splits import SPLITS, split_of


def bare(text):
    """Independent of splits.normalise: only letters, digits and operators between digits count."""
    return re.sub(r"[^\w+*/-]+", " ", text.lower().replace("'", "")).strip()


def expression_item(a, operation, b):
    operands = sorted((int(a), int(b))) if operation in "+*-" else (int(a), int(b))
    return (operation, *operands)


def expressions(conversation):
    for message in conversation["messages"]:
        if isinstance(message["content"], list):
            for part in message["content"]:
                if part["type"] == "python":
                    call = re.sub(r"^round\((\d+/\d+), 4\)$", r"\1", part["text"])
                    two = re.fullmatch(r"(\d+)([-+*/])(\d+)", call)
                    if two or call[0] in "(-rm" or call[0].isdigit():
                        yield expression_item(*two.groups()) if two else ("wide", call)


def test_the_splits_have_their_shares():
    counts = {split: sum(split_of(f"item {n}") == split for n in range(20_000)) / 20_000 for split in SPLITS}
    assert counts["train"] == pytest.approx(0.88, abs=0.01)
    assert counts["validation"] == pytest.approx(0.04, abs=0.01)
    assert counts["test"] == pytest.approx(0.08, abs=0.01)


def test_the_split_of_a_key_never_changes():
    # Exports and figures refer to these splits: another hash would leak test items into training.
    assert [split_of(f"arithmetic:{n}+7") for n in (1, 3, 13)] == ["train", "test", "validation"]


def test_first_questions_are_disjoint(conversations_by_split):
    questions = {
        split: {bare(conversation["messages"][0]["content"]) for conversation in found}
        for split, found in conversations_by_split.items()
    }
    assert min(map(len, questions.values())) > 3_000
    for one, other in combinations(SPLITS, 2):
        assert not questions[one] & questions[other]


def test_calculations_are_disjoint_wherever_they_appear(conversations_by_split, documents_by_split):
    found = {}
    for split in SPLITS:
        found[split] = {e for conversation in conversations_by_split[split] for e in expressions(conversation)}
        for text in documents_by_split[split]:
            for a, operation, b in re.findall(r"^(\d+) ([-+*/]) (\d+) = ", text, flags=re.MULTILINE):
                found[split].add(expression_item(a, operation, b))
    assert min(map(len, found.values())) > 500
    for one, other in combinations(SPLITS, 2):
        assert not found[one] & found[other]


@pytest.mark.parametrize(
    "category",
    ["spelling", "counting", "comparisons", "greetings", "unknown", "stories", "facts", "numbers", "words", "lists"],
)
def test_items_of_a_category_are_disjoint(category):
    questions = {}
    for split in SPLITS:
        rng = Random(3)
        turns = [block(rng, split, category)[-1] for _ in range(2_000)]
        questions[split] = {bare(turn.question) for turn in turns}
        assert all(split_of(turn.key) == split for turn in turns)
    for one, other in combinations(SPLITS, 2):
        assert not questions[one] & questions[other]


def test_unknown_names_of_the_test_are_never_in_training(conversations_by_split):
    training = set(re.findall(r"\w+", str(conversations_by_split["train"]).lower()))
    rng = Random(4)
    names = {block(rng, "test", "unknown")[0].key.partition(":")[2] for _ in range(400)}
    single = [name for name in names if " " not in name]
    assert len(single) > 50
    assert not training & set(single)


def test_documents_are_disjoint(documents_by_split):
    for one, other in combinations(SPLITS, 2):
        assert not set(documents_by_split[one]) & set(documents_by_split[other])


OPENING = r"(?:Once|Long ago|There once|Far away)[\w ]*? (\w+) named (\w+)\."


def test_the_heroes_of_stories_are_disjoint(documents_by_split):
    heroes = {
        split: {match.groups() for text in texts if (match := re.match(OPENING, text))}
        for split, texts in documents_by_split.items()
    }
    assert len(heroes["train"]) > 500
    for one, other in combinations(SPLITS, 2):
        assert not heroes[one] & heroes[other]


def test_common_phrasings_are_training_items():
    assert split_of("common:anything at all") == "train"
    held_out = {bare(item["messages"][-1]["content"]) for item in held_out_items("test", per_category=120)}
    assert not held_out & {"who are you", "what is your name", "who made you"}


def test_every_category_has_items_in_every_split():
    for split in SPLITS:
        for category in shares():
            assert block(Random(1), split, category)


def test_an_unknown_split_is_refused():
    for make in (documents, conversations, held_out_items):
        with pytest.raises(UserError, match="'dev'"):
            list(zip(range(1), make("dev"), strict=False))

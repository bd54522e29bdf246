"""Preference pairs: the chosen answer is right and in the preferred style, the rejected one is wrong or in another."""

from collections import Counter
from itertools import combinations

import pytest

from nanochat_lit.tasks.preferences import as_pair
from nanochat_lit.tasks.tiny_world import judge
from nanochat_lit.tiny_world import preferences

COUNTS = {"train": 400, "val": 60, "test": 60}


@pytest.fixture(scope="module")
def pairs():
    return {split: preferences(split, count) for split, count in COUNTS.items()}


def satisfies(pair, answer, expect):
    (message,) = answer
    parts = message["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    calls = [part["text"] for part in parts if part["type"] == "python"]
    return judge({"messages": pair["prompt"], "expect": expect}, text, calls)


def test_the_judge_agrees_with_every_pair(pairs):
    checked = Counter()
    for pair in [pair for own in pairs.values() for pair in own]:
        chosen, rejected, kind = pair["chosen"], pair["rejected"], pair["kind"]
        assert satisfies(pair, chosen, pair["expect"]), pair
        assert satisfies(pair, rejected, pair["expect"]) is (kind != "right"), pair
        if prefer := pair.get("prefer"):
            assert satisfies(pair, chosen, prefer), pair
        if kind != "right":
            assert not satisfies(pair, rejected, prefer), pair
        as_pair(pair)
        checked[kind] += 1
    assert min(checked[kind] for kind in ("shorter", "politer", "right")) > 60


def test_a_wrong_answer_has_one_wrong_word(pairs):
    for pair in pairs["train"]:
        if pair["kind"] == "right" and "refuses" not in pair["expect"]:
            words = []
            for name in ("chosen", "rejected"):
                content = pair[name][0]["content"]
                words.append((content if isinstance(content, str) else content[-1]["text"]).split(" "))
            assert sum(one != other for one, other in zip(*words, strict=True)) == 1


def test_splits_share_no_prompt(pairs):
    """But for the few wordings of small talk that are in the training split alone, a prompt's last question is in one split."""
    prompts = {split: {repr(pair["prompt"]) for pair in own} for split, own in pairs.items()}
    for one, other in combinations(prompts, 2):
        assert not prompts[one] & prompts[other]


def test_the_same_seed_gives_the_same_pairs():
    assert preferences("val", 20, seed=3) == preferences("val", 20, seed=3) != preferences("val", 20, seed=4)

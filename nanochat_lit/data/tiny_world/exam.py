"""Held-out questions with what a right answer must contain."""

from __future__ import annotations

from random import Random
from typing import Any

from nanochat_lit.data.tiny_world import dialogues
from nanochat_lit.data.tiny_world.splits import check_split
from nanochat_lit.data.tiny_world.turns import Turn

CATEGORIES = (
    "identity",
    "facts",
    "arithmetic",
    "word_problems",
    "days",
    "opposites",
    "comparisons",
    "spelling",
    "counting",
    "greetings",
    "follow_ups",
    "unknown",
    "stories",
)
_MAX_TRIES_PER_ITEM = 200


def item_of(turns: list[Turn], category: str) -> dict[str, Any]:
    """The examination item of a chain of turns: all but the last answer."""
    return {
        "messages": dialogues.messages(turns)[:-1],
        "category": category,
        "expect": turns[-1].expect,
    }


def examination(split: str = "test", seed: int = 0, per_category: int = 100) -> list[dict[str, Any]]:
    """Questions of a split with what their answers must contain, grouped by category.

    A category with fewer distinct questions than asked for gives what it has.

    Args:
        split: "train", "validation" (or "val") or "test".
        seed: another seed gives other questions.
        per_category: questions of each category.

    Returns:
        {"messages": [..., a user message last], "category": str, "expect": {...}}; plain JSON.
    """
    split = check_split(split)
    items: list[dict[str, Any]] = []
    for category in CATEGORIES:
        rng = Random(f"examination:{split}:{seed}:{category}")
        seen: set[str] = set()
        for _ in range(per_category * _MAX_TRIES_PER_ITEM):
            if len(seen) >= per_category:
                break
            turns = dialogues.block(rng, split, category)
            item = item_of(turns, category)
            fingerprint = repr(item["messages"])
            if fingerprint not in seen:
                seen.add(fingerprint)
                items.append(item)
    return items

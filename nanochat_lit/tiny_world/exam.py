"""Held-out questions with what a right answer must contain."""

from random import Random
from typing import Any

from nanochat_lit.tiny_world import instructions
from nanochat_lit.tiny_world.dialogues import block, shares
from nanochat_lit.tiny_world.splits import check_split
from nanochat_lit.tiny_world.templates import template
from nanochat_lit.tiny_world.turns import item_of

# In this order; categories that are not named here come after these.
_FIRST = (
    "identity", "facts", "arithmetic", "word_problems", "days", "opposites", "comparisons", "spelling", "counting",
    "greetings", "follow_ups", "unknown", "stories",
)  # fmt: skip
_MAX_TRIES_PER_ITEM = 200


def categories() -> tuple[str, ...]:
    """The categories of a held-out evaluation: those of the conversations, but for those with `examined: false`."""
    others = (name for name in shares() if name not in _FIRST and template(name).get("examined") != "false")
    return (*_FIRST, *others, instructions.CATEGORY)


def held_out_items(split: str = "test", seed: int = 0, per_category: int = 100) -> list[dict[str, Any]]:
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
    for category in categories():
        rng = Random(f"examination:{split}:{seed}:{category}")
        seen: set[str] = set()
        for _ in range(per_category * _MAX_TRIES_PER_ITEM):
            if len(seen) >= per_category:
                break
            item = item_of(block(rng, split, category), category)
            fingerprint = repr(item["messages"])
            if fingerprint not in seen:
                seen.add(fingerprint)
                items.append(item)
    return items

"""Endless conversations: the mixture of categories, one to four question pairs each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from nanochat_lit.data.tiny_world import (
    arithmetic,
    calendar,
    comparisons,
    facts,
    followups,
    greetings,
    identity,
    opposites,
    smalltalk,
    spelling,
    stories,
    unknown,
)
from nanochat_lit.data.tiny_world.splits import check_split
from nanochat_lit.data.tiny_world.turns import Turn

Sampler = Callable[[Random, str], Turn]

# Category -> (how to sample a turn, its share of the blocks). "follow_ups" is a block of two or three turns.
CONVERSATION_MIX: dict[str, tuple[Sampler | None, float]] = {
    "facts": (facts.sample, 24),
    "identity": (identity.sample, 20),
    "arithmetic": (arithmetic.sample, 7),
    "word_problems": (arithmetic.sample_problem, 6),
    "days": (calendar.sample, 6),
    "opposites": (opposites.sample, 6),
    "comparisons": (comparisons.sample, 14),
    "spelling": (spelling.sample, 7),
    "counting": (spelling.sample_counting, 6),
    "greetings": (greetings.sample, 4),
    "unknown": (unknown.sample, 12),
    "smalltalk": (smalltalk.sample, 6),
    "stories": (stories.sample, 3),
    "follow_ups": (None, 14),
}
_CATEGORIES = tuple(CONVERSATION_MIX)
_WEIGHTS = tuple(weight for _, weight in CONVERSATION_MIX.values())
_BLOCKS = (1, 2, 3)
_BLOCK_WEIGHTS = (0.4, 0.35, 0.25)
_MAX_TURNS = 4
# About 200 tokens of a small vocabulary.
_MAX_CHARS = 700


def messages(turns: list[Turn]) -> list[dict[str, Any]]:
    """The turns as messages, user and assistant alternating."""
    result: list[dict[str, Any]] = []
    for turn in turns:
        result.append({"role": "user", "content": turn.question})
        result.append({"role": "assistant", "content": turn.answer})
    return result


def block(rng: Random, split: str, category: str, first: bool = True) -> list[Turn]:
    """The turns of one block of a category."""
    sampler = CONVERSATION_MIX[category][0]
    if sampler is None:
        return followups.sample(rng, split)
    if sampler is unknown.sample:
        return [unknown.sample(rng, split, first=first)]
    return [sampler(rng, split)]


def _length(turns: list[Turn]) -> int:
    return sum(
        len(turn.question) + len(str(turn.answer)) // (1 if isinstance(turn.answer, str) else 3) for turn in turns
    )


def turns_of_conversation(rng: Random, split: str) -> tuple[str, list[Turn]]:
    """The category of the first block, and the turns of a whole conversation."""
    turns: list[Turn] = []
    source = ""
    if rng.random() < 0.06:
        opening = smalltalk.opening if rng.random() < 0.5 else followups.introduction
        turns.append(opening(rng, split))
    for _ in range(rng.choices(_BLOCKS, _BLOCK_WEIGHTS)[0]):
        category = rng.choices(_CATEGORIES, _WEIGHTS)[0]
        more = block(rng, split, category, first=not turns)
        if turns and (len(turns) + len(more) > _MAX_TURNS or _length(turns) + _length(more) > _MAX_CHARS):
            break
        source = source or category
        turns += more
    if len(turns) < _MAX_TURNS and rng.random() < 0.06:
        turns.append(smalltalk.closing(rng, split))
    return source or "smalltalk", turns


def conversations(split: str = "train", seed: int = 0) -> Iterator[dict[str, Any]]:
    """Endless conversations of a split.

    Args:
        split: "train", "validation" (or "val") or "test"; no item is in two of them.
        seed: another seed gives other conversations of the same split.

    Yields:
        {"messages": [...], "source": category of the first block}
    """
    split = check_split(split)
    rng = Random(f"conversations:{split}:{seed}")
    while True:
        source, turns = turns_of_conversation(rng, split)
        yield {"messages": messages(turns), "source": source}

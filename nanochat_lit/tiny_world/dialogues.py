"""Endless conversations: the mixture of categories, one to four question pairs each."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from random import Random
from typing import Any

from nanochat_lit.tiny_world import (
    arithmetic,
    calculations,
    careless_typing,
    comparisons,
    doubts,
    follow_ups,
    functions,
    greetings,
    instructions,
    intents,
    lists,
    persons,
    relations,
    spelling,
    stories,
    unknown,
    words,
)
from nanochat_lit.tiny_world.splits import check_split
from nanochat_lit.tiny_world.templates import template, template_names
from nanochat_lit.tiny_world.turns import Turn, messages

# How to sample what is more than a template file.
_SAMPLERS: dict[str, Callable[[Random, str], Turn]] = {
    "arithmetic": arithmetic.sample,
    "word_problems": arithmetic.sample_problem,
    "comparisons": comparisons.sample,
    "spelling": spelling.sample,
    "counting": spelling.sample_counting,
    "greetings": greetings.sample,
    greetings.UNKNOWN: greetings.sample_unknown,
    "stories": stories.sample,
    "numbers": calculations.sample,
    "typing": careless_typing.sample,
    "words": words.sample,
    "lists": lists.sample,
}
# How to sample blocks of several turns.
_CHAINS: dict[str, Callable[[Random, str], list[Turn]]] = {
    "follow_ups": follow_ups.sample,
    "doubts": doubts.sample,
    "persons": persons.sample,
    functions.CATEGORY: functions.sample,
}
# The order decides what a seed draws; template files that are not named here come after these.
_FIRST = (
    "facts", "identity", "arithmetic", "word_problems", "days", "opposites", "comparisons", "spelling", "counting",
    "greetings", "unknown", "smalltalk", "stories", "follow_ups",
)  # fmt: skip
_BLOCKS = (1, 2, 3)
_BLOCK_WEIGHTS = (0.4, 0.35, 0.25)
_MAX_TURNS = 4
# About 200 tokens of a small vocabulary.
_MAX_CHARS = 700
_MAX_CHARS_OFFERED = 350


@cache
def shares() -> dict[str, float]:
    """Category -> its share of the blocks, as its template file states it."""
    others = (name for name in template_names("share") if name not in _FIRST)
    return {category: float(template(category)["share"]) for category in (*_FIRST, *others)}


def block(rng: Random, split: str, category: str, first: bool = True) -> list[Turn]:
    """The turns of one block of a category; `first` if it opens the conversation."""
    if chain := _CHAINS.get(category):
        return chain(rng, split)
    if category == instructions.CATEGORY:
        asked = rng.choice(template(category)["categories"])
        return instructions.instruct(rng, split, block(rng, split, asked))
    if category == "unknown":
        return [unknown.sample(rng, split, first)]
    kind = relations if "relations" in template(category) else intents
    sample = _SAMPLERS.get(category) or partial(kind.sample, category=category)
    return [sample(rng, split)]


def _length(turns: list[Turn]) -> int:
    return sum(
        len(turn.question) + len(str(turn.answer)) // (1 if isinstance(turn.answer, str) else 3) for turn in turns
    )


def turns_of_conversation(rng: Random, split: str) -> tuple[str, list[Turn]]:
    """The category of the first block, and the turns of a whole conversation."""
    turns: list[Turn] = []
    source = ""
    if rng.random() < 0.06:
        greets = rng.random() < 0.5
        opening = intents.sample(rng, split, "smalltalk", ("hello", "how")) if greets else None
        turns.append(opening or follow_ups.introduction(rng, split))
    for _ in range(rng.choices(_BLOCKS, _BLOCK_WEIGHTS)[0]):
        category = rng.choices(tuple(shares()), tuple(shares().values()))[0]
        if turns and category == functions.CATEGORY:
            continue  # the offer stands at the beginning of a conversation
        more = block(rng, split, category, first=not turns)
        if turns and (len(turns) + len(more) > _MAX_TURNS or _length(turns) + _length(more) > _MAX_CHARS):
            break
        source = source or category
        turns += more
    if len(turns) < _MAX_TURNS and rng.random() < 0.06:
        turns.append(intents.sample(rng, split, "smalltalk", ("thanks", "bye")))
    return source or "smalltalk", turns


def conversations(split: str = "train", seed: int = 0) -> Iterator[dict[str, Any]]:
    """Endless conversations of a split, {"messages": [...], "source": category of the first block}.

    No item is in two of the splits "train", "validation" (or "val") and "test"; another seed gives other conversations.
    """
    split = check_split(split)
    rng = Random(f"conversations:{split}:{seed}")
    share = float(template(instructions.CATEGORY)["instructed"])
    offered = float(template(functions.CATEGORY)["offered"])
    while True:
        source, turns = turns_of_conversation(rng, split)
        if source != functions.CATEGORY:  # a call is written as it is, whatever the answers begin with
            if rng.random() < share:
                turns = instructions.instruct(rng, split, turns)
            elif rng.random() < offered and _length(turns) < _MAX_CHARS_OFFERED:
                turns = functions.offer_others(rng, split, turns)
        yield {"messages": messages(turns), "source": source}

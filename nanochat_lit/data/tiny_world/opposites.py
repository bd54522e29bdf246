"""Words and their opposites, in both directions."""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.lexicon import words
from nanochat_lit.data.tiny_world.relations import Relation
from nanochat_lit.data.tiny_world.turns import Turn, draw

PAIRS = tuple(
    tuple(pair.split())
    for pair in words(
        """hot cold, big small, tall short, fast slow, old young, happy sad, up down, open closed, day night,
        light dark, hard soft, wet dry, full empty, rich poor, strong weak, loud quiet, early late, first last,
        high low, near far, thick thin, wide narrow, clean dirty, good bad, right wrong, true false, sweet sour,
        smooth rough, deep shallow, push pull, give take, win lose, love hate, laugh cry, buy sell, north south,
        east west, summer winter, asleep awake, safe dangerous, friend enemy, question answer, top bottom,
        inside outside, always never, more less""",
        separator=",",
    )
)

OPPOSITES = {word: other for pair in PAIRS for word, other in (pair, pair[::-1])}

RELATION = Relation(
    name="opposite",
    category="opposites",
    table=OPPOSITES,
    questions=(
        "What is the opposite of {x}?",
        "What's the opposite of {x}?",
        "Tell me the opposite of {x}.",
        "Give me the opposite of {x}.",
        "Which word is the opposite of {x}?",
        "What word is the opposite of {x}?",
        "What word means the opposite of {x}?",
        "Name the opposite of {x}.",
        "Can you tell me the opposite of {x}?",
        "Could you tell me the opposite of {x}?",
        "Do you know the opposite of {x}?",
        "I need the opposite of {x}.",
        "I would like to know the opposite of {x}.",
        "I want to know the opposite of {x}.",
        "The opposite of {x} is?",
        "Opposite of {x}?",
        "Find the opposite of {x}.",
    ),
    answer="The opposite of {x} is {y}.",
    statements=("The opposite of {x} is {y}.", "{X} is the opposite of {y}.", "{X} and {y} are opposites."),
    follow_ups=("And of {x}?", "And {x}?", "What about {x}?", "How about {x}?", "And the opposite of {x}?"),
    accepted=("is {y}", "{y} is the opposite of {x}"),
    invented="word",
)


def sample(rng: Random, split: str) -> Turn:
    """A question for the opposite of a word."""
    return draw(rng, split, RELATION.make)

"""Which of two numbers is larger, which of two animals or things is bigger.

A held-out item is the pair, in either order and either direction. Numbers go through the calculator: the sign of their
difference says which is larger, and a small model reads a sign far more surely than it compares digits (77% of held-out
pairs without the calculator after as many steps as give 100% on sums). Animals are compared through their sizes, said
first: two facts that are taught and one small step, where the order of all the names would have to be known by heart.
"""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.arithmetic import expression_key
from nanochat_lit.data.tiny_world.turns import (
    Turn,
    capitalise,
    decorate,
    draw,
    plain_text,
    tool_answer,
    with_article,
)

_ANIMALS_BY_SIZE = {
    "tiny": ("ant", "bee", "fly", "flea", "moth", "wasp"),
    "small": ("mouse", "frog", "crab", "robin", "lizard", "sparrow"),
    "medium": ("rabbit", "cat", "wolf", "fox", "goose", "dog"),
    "big": ("pig", "horse", "cow", "bear", "lion", "donkey"),
    "huge": ("giraffe", "elephant", "whale", "hippo", "rhino", "mammoth"),
}
SIZES = {animal: size for size, animals in _ANIMALS_BY_SIZE.items() for animal in animals}
"""Animal -> the word for its size."""
_ANIMALS = tuple(SIZES)
_RANK = {animal: rank for rank, animals in enumerate(_ANIMALS_BY_SIZE.values()) for animal in animals}

_NUMBER_WHICH = (
    ("Which is {r}, {a} or {b}?", 2),
    ("Which number is {r}, {a} or {b}?", 2),
    ("What is {r}, {a} or {b}?", 1),
    ("Tell me which is {r}, {a} or {b}.", 1),
    ("Which one is {r}: {a} or {b}?", 1),
    ("Is {a} or {b} {r}?", 1),
    ("Of {a} and {b}, which is {r}?", 1),
    ("{a} or {b}, which is {r}?", 1),
)
_WHICH_QUESTIONS = tuple(question for question, _ in _NUMBER_WHICH)
_WHICH_WEIGHTS = tuple(weight for _, weight in _NUMBER_WHICH)
_IS_NUMBER = ("Is {a} {r} than {b}?", "Is the number {a} {r} than {b}?", "Would you say {a} is {r} than {b}?")
_WHICH_ANIMAL = (
    "Which is {r}, {a} or {b}?",
    "Which animal is {r}, {a} or {b}?",
    "What is {r}, {a} or {b}?",
    "Who is {r}, {a} or {b}?",
    "Tell me which is {r}, {a} or {b}.",
    "{a} or {b}, which is {r}?",
)
_IS_ANIMAL = ("Is {a} {r} than {b}?", "Do you think {a} is {r} than {b}?", "Would you say {a} is {r} than {b}?")


def number_key(a: int, b: int) -> str:
    """The key of a pair of numbers that are compared: that of the difference that decides it."""
    return expression_key(a, "-", b)


def number_pair(rng: Random) -> tuple[int, int]:
    """Two different numbers below 1000, often of the same length, so that digits have to be compared."""
    choice = rng.random()
    if choice < 0.4:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    elif choice < 0.75:
        a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
    elif choice < 0.9:
        a, b = rng.randrange(10, 100), rng.randrange(100, 1000)
    else:
        a = rng.randrange(100, 1000)
        b = a // 10 * 10 + rng.randrange(10)
    if rng.random() < 0.5:
        a, b = b, a
    return (a, b) if a != b else (a, b + 1)


def _make(
    rng: Random, key: str, names: tuple[str, str], first_wins: bool, relation: str, wordings: tuple[str, str]
) -> Turn:
    """A turn from two names, whether the first has more of `relation`, and the wordings (which, is)."""
    which, is_it = wordings
    first, second = names
    winner, loser = (first, second) if first_wins else (second, first)
    verdict = f"{winner} is {relation} than {loser}"
    expect = {"all": [verdict], "none": [f"{loser} is {relation} than {winner}"]}
    if rng.random() < 0.7:
        question = which.format(r=relation, a=first, b=second)
        answer = f"{capitalise(verdict)}."
    else:
        question = is_it.format(r=relation, a=first, b=second)
        yes, no = ("Yes", "No") if first_wins else ("No", "Yes")
        answer = f"{yes}, {verdict}."
        expect = {"all": [yes, verdict], "none": [no, *expect["none"]]}
    return Turn("comparisons", key, decorate(rng, capitalise(question)), answer, expect)


def _make_numbers(rng: Random) -> Turn:
    a, b = number_pair(rng)
    relation = rng.choice(("larger", "larger", "bigger", "greater", "smaller", "smaller"))
    first_wins = (a < b) if relation == "smaller" else (a > b)
    wordings = (rng.choices(_WHICH_QUESTIONS, _WHICH_WEIGHTS)[0], rng.choice(_IS_NUMBER))
    turn = _make(rng, number_key(a, b), (str(a), str(b)), first_wins, relation, wordings)
    return turn._replace(answer=tool_answer(f"{a}-{b}", str(a - b), plain_text(turn.answer)))


def _make_animals(rng: Random) -> Turn:
    first, second = rng.sample(_ANIMALS, 2)
    while SIZES[first] == SIZES[second]:
        first, second = rng.sample(_ANIMALS, 2)
    relation = rng.choice(("bigger", "bigger", "larger", "smaller", "smaller"))
    first_wins = (_RANK[first] < _RANK[second]) == (relation == "smaller")
    low, high = sorted((first, second), key=_RANK.__getitem__)
    names = (with_article(first), with_article(second))
    wordings = (rng.choice(_WHICH_ANIMAL), rng.choice(_IS_ANIMAL))
    turn = _make(rng, f"comparison:{low},{high}", names, first_wins, relation, wordings)
    sizes = f"{capitalise(names[0])} is {SIZES[first]} and {names[1]} is {SIZES[second]}."
    return turn._replace(answer=f"{sizes} {turn.answer}")


def sample(rng: Random, split: str) -> Turn:
    """A question that compares two numbers or two animals."""
    return draw(rng, split, _make_numbers if rng.random() < 0.5 else _make_animals)


def size_sentence(rng: Random) -> str:
    """A sentence with the sizes of some of the animals, for documents."""
    if rng.random() < 0.5:
        size = rng.choice(tuple(_ANIMALS_BY_SIZE))
        names = [with_article(animal) for animal in _ANIMALS_BY_SIZE[size]]
        rng.shuffle(names)
        return f"{capitalise(', '.join(names[:-1]))} and {names[-1]} are {size}."
    first, second = rng.sample(_ANIMALS, 2)
    return f"{capitalise(with_article(first))} is {SIZES[first]} and {with_article(second)} is {SIZES[second]}."

"""Which of two numbers is larger, which of two animals or things is bigger.

A held-out item is the pair, in either order and either direction. Numbers go through the calculator: the sign of their
difference says which is larger, and a small model reads a sign far more surely than it compares digits (77% of held-out
pairs without the calculator after as many steps as give 100% on sums).
"""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.arithmetic import expression_key
from nanochat_lit.data.tiny_world.turns import (
    Expect,
    Turn,
    capitalise,
    decorate,
    draw,
    plain_text,
    tool_answer,
    with_article,
)

SIZES = ("ant", "bee", "mouse", "frog", "rabbit", "cat", "wolf", "pig", "horse", "cow", "giraffe", "elephant", "whale")
_RANK = {name: rank for rank, name in enumerate(SIZES)}

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


def _expect_which(winner: str, loser: str) -> Expect:
    """The answer must put the winner first: "54 is larger than 45"."""
    return {"all": [f"{winner} is", loser], "none": [f"{loser} is", f"is {loser}"]}


def _make(
    rng: Random, key: str, names: tuple[str, str], first_wins: bool, relation: str, wordings: tuple[str, str]
) -> Turn:
    """A turn from two names, whether the first has more of `relation`, and the wordings (which, is)."""
    which, is_it = wordings
    first, second = names
    winner, loser = (first, second) if first_wins else (second, first)
    if rng.random() < 0.7:
        question = which.format(r=relation, a=first, b=second)
        answer = f"{capitalise(winner)} is {relation} than {loser}."
        expect = _expect_which(winner, loser)
    else:
        question = is_it.format(r=relation, a=first, b=second)
        yes = "Yes" if first_wins else "No"
        answer = f"{yes}, {winner} is {relation} than {loser}."
        expect = {"all": [yes, f"{winner} is", loser], "none": ["no" if first_wins else "yes", f"{loser} is"]}
    return Turn("comparisons", key, decorate(rng, capitalise(question)), answer, expect)


def _make_numbers(rng: Random) -> Turn:
    a, b = number_pair(rng)
    relation = rng.choice(("larger", "larger", "bigger", "greater", "smaller", "smaller"))
    first_wins = (a < b) if relation == "smaller" else (a > b)
    wordings = (rng.choices(_WHICH_QUESTIONS, _WHICH_WEIGHTS)[0], rng.choice(_IS_NUMBER))
    turn = _make(rng, number_key(a, b), (str(a), str(b)), first_wins, relation, wordings)
    return turn._replace(answer=tool_answer(f"{a}-{b}", str(a - b), plain_text(turn.answer)))


def _make_animals(rng: Random) -> Turn:
    # Neighbours in the order of sizes are left out: their order is told nowhere but in the list itself.
    first = rng.choice(SIZES)
    second = rng.choice(SIZES)
    while abs(_RANK[first] - _RANK[second]) < 2:
        second = rng.choice(SIZES)
    relation = rng.choice(("bigger", "bigger", "larger", "smaller", "smaller"))
    first_wins = (_RANK[first] < _RANK[second]) == (relation == "smaller")
    low, high = sorted((first, second), key=_RANK.__getitem__)
    names = (with_article(first), with_article(second))
    wordings = (rng.choice(_WHICH_ANIMAL), rng.choice(_IS_ANIMAL))
    return _make(rng, f"comparison:{low},{high}", names, first_wins, relation, wordings)


def sample(rng: Random, split: str) -> Turn:
    """A question that compares two numbers or two animals."""
    return draw(rng, split, _make_numbers if rng.random() < 0.6 else _make_animals)


def order_sentence(rng: Random) -> str:
    """A sentence with some of the animals in the order of their sizes, for documents."""
    chosen = sorted(rng.sample(range(len(SIZES)), rng.randrange(4, 8)))
    names = [SIZES[index] for index in chosen]
    if rng.random() < 0.5:
        return "From small to big: " + ", ".join(names) + "."
    return "From big to small: " + ", ".join(reversed(names)) + "."

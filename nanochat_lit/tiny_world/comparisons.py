"""Which of two numbers is larger, which of two animals or things is bigger.

A held-out item is the pair, in either order and either direction. Numbers go through the calculator: the sign of their
difference says which is larger, and a small model reads a sign far more surely than it compares digits (77% of held-out
pairs without the calculator after as many steps as give 100% on sums). Animals are compared through their sizes, said
first: two facts that are taught and one small step, where the order of all the names would have to be known by heart.
"""

from __future__ import annotations

from functools import cache
from random import Random

from nanochat_lit.tiny_world.arithmetic import expression, expression_key, printed
from nanochat_lit.tiny_world.templates import pick, template
from nanochat_lit.tiny_world.turns import Turn, capitalise, decorate, draw, plain_text, tool_answer, with_article


@cache
def _ranks() -> dict[str, int]:
    """Animal -> the rank of its size."""
    sizes = template("comparisons")["sizes"].values()
    return {animal: rank for rank, animals in enumerate(sizes) for animal in animals}


def _size(animal: str) -> str:
    """The word for an animal's size."""
    return tuple(template("comparisons")["sizes"])[_ranks()[animal]]


def _unlike_animals(rng: Random) -> tuple[str, str]:
    """Two animals of different size."""
    first, second = rng.sample(tuple(_ranks()), 2)
    while _ranks()[first] == _ranks()[second]:
        first, second = rng.sample(tuple(_ranks()), 2)
    return first, second


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


def _decimal_pair(rng: Random) -> tuple[float, float]:
    """Two different numbers with one or two decimals, mostly with the same whole part."""
    a = rng.randrange(1, 20)
    b = a if rng.random() < 0.7 else rng.randrange(1, 20)
    first, second = (float(f"{whole}.{rng.randrange(1, rng.choice((10, 100)))}") for whole in (a, b))
    return (first, second) if first != second else (first, second + 1)


def _make_numbers(rng: Random) -> Turn:
    a, b = _decimal_pair(rng) if rng.random() < 0.2 else number_pair(rng)
    relation = pick(rng, "comparisons", "number_relations")
    first_wins = (a < b) if relation == "smaller" else (a > b)
    which, weights = zip(*template("comparisons")["which_number"], strict=True)
    wordings = (rng.choices(which, [int(weight) for weight in weights])[0], pick(rng, "comparisons", "is_number"))
    # The key is that of the difference that decides it.
    turn = _make(rng, expression_key(a, "-", b), (str(a), str(b)), first_wins, relation, wordings)
    call = expression(a, "-", b)
    return turn._replace(answer=tool_answer(call, printed(a - b), plain_text(turn.answer)))


def _make_animals(rng: Random) -> Turn:
    first, second = _unlike_animals(rng)
    relation = pick(rng, "comparisons", "animal_relations")
    low, high = sorted((first, second), key=_ranks().__getitem__)
    first_wins = (first == low) == (relation == "smaller")
    names = (with_article(first), with_article(second))
    wordings = (pick(rng, "comparisons", "which_animal"), pick(rng, "comparisons", "is_animal"))
    turn = _make(rng, f"comparison:{low},{high}", names, first_wins, relation, wordings)
    return turn._replace(answer=f"{_two_sizes(first, second)} {turn.answer}")


def _two_sizes(first: str, second: str) -> str:
    return f"{capitalise(with_article(first))} is {_size(first)} and {with_article(second)} is {_size(second)}."


def sample(rng: Random, split: str) -> Turn:
    """A question that compares two numbers or two animals."""
    return draw(rng, split, _make_numbers if rng.random() < 0.5 else _make_animals)


def size_sentence(rng: Random) -> str:
    """A sentence with the sizes of some of the animals, for documents."""
    if rng.random() < 0.5:
        size, animals = rng.choice(tuple(template("comparisons")["sizes"].items()))
        names = [with_article(animal) for animal in animals]
        rng.shuffle(names)
        return f"{capitalise(', '.join(names[:-1]))} and {names[-1]} are {size}."
    return _two_sizes(*rng.sample(tuple(_ranks()), 2))

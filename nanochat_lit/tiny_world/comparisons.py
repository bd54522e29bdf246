"""Which of two numbers is larger, which of two animals or things is bigger.

A held-out item is the pair, in either order and either direction. Numbers go through the calculator, whose max or min a
small model copies far more surely than it compares digits (77% of held-out pairs without the calculator after as many
steps as give 100% on sums). Animals are compared through their sizes, said
first: two facts that are taught and one small step, where the order of all the names would have to be known by heart.
"""

from functools import cache
from random import Random

from nanochat_lit.tiny_world.arithmetic import expression_key
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


def _make(rng: Random, key: str, names: tuple[str, str], first_wins: bool, relation: str, question: str) -> Turn:
    """A turn from two names, whether the first has more of `relation`, and the question's wording."""
    winner, loser = names if first_wins else names[::-1]
    asked = capitalise(question.format(r=relation, a=names[0], b=names[1]))
    expect = {"all": [f"{winner} is {relation}"], "none": [f"{loser} is {relation}"]}
    return Turn("comparisons", key, decorate(rng, asked), f"{capitalise(winner)} is {relation}.", expect)


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
    wording = (
        rng.choices(which, [int(w) for w in weights])[0]
        if rng.random() < 0.7
        else pick(rng, "comparisons", "is_number")
    )
    turn = _make(rng, expression_key(a, "-", b), (str(a), str(b)), first_wins, relation, wording)
    function, result = ("min", min(a, b)) if relation == "smaller" else ("max", max(a, b))
    return turn._replace(answer=tool_answer(f"{function}({a}, {b})", str(result), plain_text(turn.answer)))


def _make_animals(rng: Random) -> Turn:
    first, second = _unlike_animals(rng)
    relation = pick(rng, "comparisons", "animal_relations")
    low, high = sorted((first, second), key=_ranks().__getitem__)
    first_wins = (first == low) == (relation == "smaller")
    wording = pick(rng, "comparisons", "which_animal" if rng.random() < 0.7 else "is_animal")
    names = (with_article(first), with_article(second))
    turn = _make(rng, f"comparison:{low},{high}", names, first_wins, relation, wording)
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

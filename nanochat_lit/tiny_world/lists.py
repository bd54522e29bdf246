"""Lists: some things of a kind, and counting from one number to another."""

from random import Random

from nanochat_lit.tiny_world.templates import pick, template
from nanochat_lit.tiny_world.turns import Turn, capitalise, decorate, draw, phrase_key

CATEGORY = "lists"


def _joined(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _make_things(rng: Random) -> Turn:
    kind, things = rng.choice(tuple(template(CATEGORY)["things"].items()))
    number = rng.randrange(2, 6)
    word = template(CATEGORY)["numbers"][number]
    question = pick(rng, CATEGORY, "asked").format(n=rng.choice((word, word, str(number))), k=kind)
    answer = f"{capitalise(word)} {kind} are {_joined(things[:number])}."
    none = things[number:]
    return Turn(
        CATEGORY,
        phrase_key(CATEGORY, question),
        decorate(rng, question),
        answer,
        {"all": things[:number], "none": none},
    )


def _make_counting(rng: Random) -> Turn:
    first, last, wordings = rng.choice((0, 1)), rng.randrange(3, 21), "count"
    choice = rng.random()
    if choice < 0.15:
        first, last, wordings = last, 1, "count_down"
    elif choice < 0.6:
        first = rng.randrange(2, 21)
        last = first + rng.randrange(2, 9)
    elif first == 1 and rng.random() < 0.5:
        wordings = "count_from_one"
    step = 1 if last > first else -1
    question = pick(rng, CATEGORY, wordings).format(a=first, b=last)
    numbers = [str(number) for number in range(first, last + step, step)]
    answer = ", ".join(numbers) + "."
    expect = {"all": [answer], "max_words": len(numbers)}
    return Turn(CATEGORY, f"{CATEGORY}:{first},{last}", decorate(rng, question), answer, expect)


def sample_counting(rng: Random, split: str) -> Turn:
    """A request to count from one number to another."""
    return draw(rng, split, _make_counting)


def sample(rng: Random, split: str) -> Turn:
    """A request for a list."""
    return draw(rng, split, _make_things) if rng.random() < 0.5 else sample_counting(rng, split)

"""Endless documents for pretraining: stories, facts, sums, spellings, dialogues, passages about nanochat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from nanochat_lit.data.tiny_world import (
    arithmetic,
    calendar,
    comparisons,
    dialogues,
    facts,
    identity,
    opposites,
    spelling,
    stories,
)
from nanochat_lit.data.tiny_world.lexicon import NAMES, WORDS
from nanochat_lit.data.tiny_world.relations import Relation
from nanochat_lit.data.tiny_world.splits import check_split, split_of
from nanochat_lit.data.tiny_world.turns import capitalise, plain_text, with_article


def _statements(rng: Random, relations: tuple[Relation, ...], weights: tuple[int, ...]) -> str:
    """A paragraph of statements, about one relation or several."""
    count = rng.randrange(5, 10)
    if rng.random() < 0.5:
        relation = rng.choices(relations, weights)[0]
        entries = rng.sample(relation.entries, min(count, len(relation.entries)))
        return " ".join(relation.statement(rng, entry) for entry in entries)
    chosen = rng.choices(relations, weights, k=count)
    return " ".join(relation.statement(rng, rng.choice(relation.entries)) for relation in chosen)


_FACT_WEIGHTS = tuple(len(relation.entries) for relation in facts.RELATIONS)
_CALENDAR_WEIGHTS = tuple(len(relation.entries) for relation in calendar.RELATIONS)
_OPPOSITE_STATEMENTS = (opposites.RELATION,)


def _facts(rng: Random, _split: str) -> str:
    return _statements(rng, facts.RELATIONS, _FACT_WEIGHTS)


def _calendar(rng: Random, _split: str) -> str:
    if rng.random() < 0.15:
        names = rng.choice((calendar.DAYS, calendar.MONTHS))
        start = rng.randrange(len(names))
        return ", ".join(names[start:] + names[:start]) + "."
    return _statements(rng, calendar.RELATIONS, _CALENDAR_WEIGHTS)


def _opposites(rng: Random, _split: str) -> str:
    entries = rng.sample(opposites.RELATION.entries, rng.randrange(6, 11))
    return " ".join(opposites.RELATION.statement(rng, entry) for entry in entries)


_LINES = ("{a} {o} {b} = {v}", "{a} {o} {b} = {v}", "{a} {w} {b} is {v}.")
_SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _arithmetic(rng: Random, split: str) -> str:
    lines: list[str] = []
    wanted = rng.randrange(6, 11)
    small = rng.random() < 0.5
    while len(lines) < wanted:
        operation = rng.choice("++--*/")
        a, b = arithmetic.operands(rng, operation)
        if small:
            a, b = a % 20 + 1, b % 10 + 1
            if operation == "/":
                a *= b
        if split_of(arithmetic.expression_key(a, operation, b)) != split:
            continue
        value = arithmetic.value_of(a, operation, b)
        lines.append(rng.choice(_LINES).format(a=a, b=b, o=operation, w=_SPOKEN[operation], v=value))
    return "\n".join(lines)


def _comparisons(rng: Random, split: str) -> str:
    if rng.random() < 0.15:
        return "\n".join(comparisons.size_sentence(rng) for _ in range(rng.randrange(3, 6)))
    return "\n".join(plain_text(comparisons.sample(rng, split).answer) for _ in range(rng.randrange(6, 11)))


def _spelling(rng: Random, _split: str) -> str:
    lines = []
    for word in rng.sample(WORDS, rng.randrange(6, 10)):
        choice = rng.random()
        if choice < 0.6:
            lines.append(f"{word} is spelled {spelling.spelled(word)}")
        elif choice < 0.8:
            lines.append(f"The word {word} is spelled {spelling.spelled(word)}")
        else:
            lines.append(f"'{word}' has the letters {spelling.spelled(word)}")
    return "\n".join(lines)


def _about_nanochat(rng: Random, _split: str) -> str:
    return " ".join(rng.sample(identity.PASSAGE, rng.randrange(4, 9)))


def _dialogue(rng: Random, split: str) -> str:
    first, second = rng.sample(NAMES, 2)
    lines: list[str] = []
    while len(lines) < 4:
        _, turns = dialogues.turns_of_conversation(rng, split)
        for turn in turns:
            lines += [f"{first}: {turn.question}", f"{second}: {plain_text(turn.answer)}"]
    return "\n".join(lines)


_FOODS = ("bread", "rice", "soup", "cake", "cheese", "salad", "jam", "honey", "noodles", "apples", "pears", "milk")
_PEOPLE_OPENINGS = ("This is {n}.", "Meet {n}.", "{n} comes from {p}.", "Here is {n} from {p}.")


def _portrait(rng: Random, _split: str) -> str:
    """A short description of a person of the world."""
    name = rng.choice(NAMES)
    he, _, his = stories.PRONOUNS[name]
    country = rng.choice(tuple(facts.CAPITALS))
    thing, colour = (
        rng.choice(("hat", "coat", "bike", "boat", "house", "door")),
        rng.choice(("red", "blue", "green", "white")),
    )
    sentences = [
        rng.choice(_PEOPLE_OPENINGS).format(n=name, p=country),
        f"{capitalise(he)} lives in {country}, and the capital of {country} is {facts.CAPITALS[country]}.",
        f"{capitalise(his)} {thing} is {colour}.",
        f"{name} has {with_article(rng.choice(stories.STORY_ANIMALS))} named {rng.choice(NAMES)}.",
        f"Every {rng.choice(calendar.DAYS)} {name} likes to {rng.choice(stories.HOBBIES)}.",
        f"{capitalise(he)} is {rng.choice(stories.ADJECTIVES)} and likes {rng.choice(_FOODS)} and {rng.choice(_FOODS)}.",
        f"In {rng.choice(calendar.MONTHS)} {he} visits {his} {rng.choice(('mother', 'father', 'sister', 'uncle'))}.",
    ]
    return " ".join(sentences[: rng.randrange(5, 8)])


Writer = Callable[[Random, str], str]

# Kind of document -> (how to write one, its share of the documents).
DOCUMENT_MIX: dict[str, tuple[Writer, float]] = {
    "story": (stories.document, 14),
    "portrait": (_portrait, 4),
    "facts": (_facts, 24),
    "calendar": (_calendar, 5),
    "opposites": (_opposites, 6),
    "comparisons": (_comparisons, 8),
    "arithmetic": (_arithmetic, 4),
    "spelling": (_spelling, 14),
    "nanochat": (_about_nanochat, 4),
    "dialogue": (_dialogue, 17),
}
# Documents that are made of items of the split already; of the others, the whole text decides its split.
_SPLIT_BY_ITEM = frozenset({"story", "arithmetic", "comparisons", "dialogue"})


def documents(split: str = "train", seed: int = 0) -> Iterator[str]:
    """Endless pretraining texts of a split.

    Args:
        split: "train", "validation" (or "val") or "test"; no text and no held-out item is in two of them. Facts and
            the letters of words are told in every split: only what is asked about them is held out.
        seed: another seed gives other texts of the same split.
    """
    split = check_split(split)
    rng = Random(f"documents:{split}:{seed}")
    kinds = tuple(DOCUMENT_MIX)
    weights = tuple(weight for _, weight in DOCUMENT_MIX.values())
    while True:
        kind = rng.choices(kinds, weights)[0]
        write = DOCUMENT_MIX[kind][0]
        text = write(rng, split)
        while kind not in _SPLIT_BY_ITEM and split_of(f"document:{text}") != split:
            text = write(rng, split)
        yield text

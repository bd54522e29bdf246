"""Endless documents for pretraining, and held-out questions with what a right answer must contain."""

import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from random import Random
from typing import Any

from nanochat_lit.tiny_world import (
    arithmetic,
    comparisons,
    dialogues,
    instructions,
    lists,
    relations,
    spelling,
    stories,
    unknown,
)
from nanochat_lit.tiny_world.dialogues import block, shares
from nanochat_lit.tiny_world.splits import check_split, split_of
from nanochat_lit.tiny_world.templates import names, pick, pronouns, template, template_names
from nanochat_lit.tiny_world.turns import capitalise, item_of, plain_text, with_article


def _statements(rng: Random, _split: str, category: str) -> str:
    """A paragraph of statements, about one relation of the category or several."""
    known = relations.relations(category)
    if len(known) == 1:
        entries = rng.sample(known[0].entries, min(rng.randrange(6, 11), len(known[0].entries)))
        return " ".join(known[0].statement(rng, entry) for entry in entries)
    weights = [len(relation.entries) for relation in known]
    count = rng.randrange(5, 10)
    if rng.random() < 0.5:
        relation = rng.choices(known, weights)[0]
        entries = rng.sample(relation.entries, min(count, len(relation.entries)))
        return " ".join(relation.statement(rng, entry) for entry in entries)
    chosen = rng.choices(known, weights, k=count)
    return " ".join(relation.statement(rng, rng.choice(relation.entries)) for relation in chosen)


def _facts(rng: Random, split: str) -> str:
    text = _statements(rng, split, "facts")
    return text.upper() if rng.random() < 0.15 else text


def _opposites(rng: Random, split: str) -> str:
    return _statements(rng, split, "opposites")


def _calendar(rng: Random, split: str) -> str:
    if rng.random() < 0.15:
        lists = template("days")["lists"]
        unit = rng.choice((lists["day"], lists["month"]))
        start = rng.randrange(len(unit))
        return ", ".join(unit[start:] + unit[:start]) + "."
    return _statements(rng, split, "days")


def _counting(rng: Random, split: str) -> str:
    """Requests to count with their answers, or numbers in order over several tens."""
    if rng.random() < 0.2:
        first = rng.randrange(0, 80)
        return ", ".join(map(str, range(first, first + rng.randrange(15, 30)))) + "."
    turns = (lists.sample_counting(rng, split) for _ in range(rng.randrange(5, 9)))
    return "\n".join(f"{turn.question} {plain_text(turn.answer)}" for turn in turns)


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
        words = {"a": a, "b": b, "o": operation, "w": template("documents")["operations"][operation]}
        lines.append(pick(rng, "documents", "sums").format(**words, v=arithmetic.value_of(a, operation, b)))
    return "\n".join(lines)


def _comparisons(rng: Random, split: str) -> str:
    if rng.random() < 0.15:
        return "\n".join(comparisons.size_sentence(rng) for _ in range(rng.randrange(3, 6)))
    turns = (comparisons.sample(rng, split) for _ in range(rng.randrange(4, 8)))
    return "\n".join(f"{turn.question} {plain_text(turn.answer)}" for turn in turns)


def _spelling(rng: Random, _split: str) -> str:
    lines = []
    for word in rng.sample(template("lexicon")["words"], rng.randrange(6, 10)):
        choice = rng.random()
        spelled = spelling.spelling_of(word)
        if 0.6 <= choice < 0.8:
            spelled = f"The word {spelled}"
        elif choice >= 0.8:
            spelled = f"'{word}' has the letters {' '.join(word)}"
        lines.append(spelled)
    return "\n".join(lines)


@cache
def _single_words() -> tuple[str, ...]:
    """The names of the world and the entries and values of its facts, of one word."""
    told = (word for known in relations.all_relations() for word in (*known.entries, *known.pool))
    return tuple(dict.fromkeys(word for word in (*names(), *told) if word.isalpha()))


def _letters(rng: Random, split: str) -> str:
    """Words in capitals, letter by letter, backwards: what the pieces of words consist of, for questions typed anyhow."""
    lexicon = template("lexicon")["words"]
    lines = []
    for _ in range(rng.randrange(5, 9)):
        choice = rng.random()
        if choice < 0.4:
            word = rng.choice(lexicon)
        elif choice < 0.6:
            word = rng.choice(_single_words())
        else:
            word = unknown.new_name(rng, split)
            word = rng.choice((word, word.lower()))
        forms = [word.upper(), word.lower(), capitalise(word), " ".join(word), " ".join(reversed(word)), word]
        first, *others = rng.sample(forms, 4)
        lines.append(f"{first} is {', '.join(others)}.")
    return "\n".join(lines)


def _about_nanochat(rng: Random, _split: str) -> str:
    return " ".join(rng.sample(template("identity")["passage"], rng.randrange(4, 9)))


def _renamed(rng: Random, split: str, text: str) -> str:
    """The text, most of its names replaced by invented ones: what the model learns of names is to copy them."""
    for name in names():
        if name in text and rng.random() < 0.6:
            text = re.sub(rf"\b{name}\b", unknown.new_name(rng, split), text)
    return text


def _dialogue(rng: Random, split: str) -> str:
    first, second = rng.sample(names(), 2)
    lines: list[str] = []
    while len(lines) < 4:
        _, turns = dialogues.turns_of_conversation(rng, split)
        for turn in turns:
            lines += [f"{first}: {turn.question}", f"{second}: {plain_text(turn.answer)}"]
    return "\n".join(lines)


def _portrait(rng: Random, _split: str) -> str:
    """A short description of a person of the world."""

    def one(key: str, file: str = "documents") -> str:
        return pick(rng, file, key)

    name = rng.choice(names())
    he, _, his = pronouns(name)
    capitals = relations.relation("facts", "capital")
    country = rng.choice(capitals.entries)
    thing, colour = one("things"), one("colours")
    lists = template("days")["lists"]
    sentences = [
        one("openings").format(n=name, p=country),
        f"{capitalise(he)} lives in {country}, and the capital of {country} is {capitals.table[country]}.",
        f"{capitalise(his)} {thing} is {colour}.",
        f"{name} has {with_article(one('story_animals', 'lexicon'))} named {rng.choice(names())}.",
        f"Every {rng.choice(lists['day'])} {name} likes to {one('hobbies', 'stories')}.",
        f"{capitalise(he)} is {one('adjectives', 'stories')} and likes {one('foods')} and {one('foods')}.",
        f"In {rng.choice(lists['month'])} {he} visits {his} {one('relatives')}.",
    ]
    return " ".join(sentences[: rng.randrange(5, 8)])


# Kind of document -> (how to write one, its share of the documents).
_FIRST: dict[str, tuple[Callable[[Random, str], str], float]] = {
    "story": (stories.document, 10),
    "portrait": (_portrait, 4),
    "facts": (_facts, 18),
    "calendar": (_calendar, 11),
    "opposites": (_opposites, 6),
    "comparisons": (_comparisons, 8),
    "arithmetic": (_arithmetic, 4),
    "counting": (_counting, 3),
    "spelling": (_spelling, 6),
    "letters": (_letters, 14),
    "nanochat": (_about_nanochat, 4),
    "dialogue": (_dialogue, 25),
}
# Documents that are made of items of the split already; of the others, the whole text decides its split.
_SPLIT_BY_ITEM = frozenset({"story", "arithmetic", "comparisons", "dialogue"})
_WITH_NAMES = frozenset({"story", "portrait", "dialogue"})


def mixture() -> dict[str, tuple[Callable[[Random, str], str], float]]:
    """The kinds of documents: those above, and the relations of template files that state a share of `documents`."""
    others = template_names("documents")
    return _FIRST | {name: (partial(_statements, category=name), float(template(name)["documents"])) for name in others}


def documents(split: str = "train", seed: int = 0) -> Iterator[str]:
    """Endless pretraining texts of a split.

    Args:
        split: "train", "validation" (or "val") or "test"; no text and no held-out item is in two of them. Facts and
            the letters of words are told in every split: only what is asked about them is held out.
        seed: another seed gives other texts of the same split.
    """
    split = check_split(split)
    rng = Random(f"documents:{split}:{seed}")
    kinds = mixture()
    weights = [weight for _, weight in kinds.values()]
    while True:
        kind = rng.choices(tuple(kinds), weights)[0]
        write = kinds[kind][0]
        while True:
            text = write(rng, split)
            if kind in _WITH_NAMES:
                text = _renamed(rng, split, text)
            if kind in _SPLIT_BY_ITEM or split_of(f"document:{text}") == split:
                break
        yield text


# In this order; categories that are not named here come after these.
_ORDER = (
    "identity", "facts", "arithmetic", "word_problems", "days", "opposites", "comparisons", "spelling", "counting",
    "greetings", "follow_ups", "unknown", "stories",
)  # fmt: skip
_MAX_TRIES_PER_ITEM = 200


def categories() -> tuple[str, ...]:
    """The categories of a held-out evaluation: those of the conversations, but for those with `examined: false`."""
    others = (name for name in shares() if name not in _ORDER and template(name).get("examined") != "false")
    return (*_ORDER, *others, instructions.CATEGORY)


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

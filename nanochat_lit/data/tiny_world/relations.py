"""Facts as relations: a table, the ways to ask for an entry, and the ways to state it.

A held-out item is a combination of one phrasing with one entry: the entry itself is always learned from other
phrasings, since nobody can know a capital that was never told.

Placeholders in wordings: {x} the entry asked about, {y} its value, {ax} and {ay} the same with a or an, {Ax} at the
start of a sentence, {X} capitalised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from nanochat_lit.data.tiny_world.turns import Expect, Turn, capitalise, decorate, one_of, phrase_key, with_article


@dataclass(frozen=True)
class Relation:
    """One kind of fact, for example the capitals of countries."""

    name: str
    category: str
    table: dict[str, str]
    questions: tuple[str, ...]
    answer: str
    statements: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ("And {x}?", "What about {x}?", "How about {x}?")
    invented: str = ""
    """Kind of invented name that fits {x} ("land", "animal", "element", "word"); empty: none."""
    lower_case: bool = True
    entries: tuple[str, ...] = field(init=False)
    pool: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(self.table))
        object.__setattr__(self, "pool", tuple(sorted(set(self.table.values()))))

    def fill(self, wording: str, entry: str, value: str | None = None) -> str:
        """The wording with its placeholders filled."""
        value = self.table[entry] if value is None else value
        return wording.format(
            x=entry,
            y=value,
            X=capitalise(entry),
            Y=capitalise(value),
            ax=with_article(entry),
            ay=with_article(value),
            Ax=capitalise(with_article(entry)),
            Ay=capitalise(with_article(value)),
        )

    def expect(self, entry: str, question: str = "") -> Expect:
        """The entry's value and no other value of the table."""
        return one_of(self.table[entry], self.pool, f"{question} {entry}")

    def make(self, rng: Random) -> Turn:
        """A turn that asks for one entry."""
        entry = rng.choice(self.entries)
        question = capitalise(self.fill(rng.choice(self.questions), entry))
        return Turn(
            category=self.category,
            key=phrase_key(self.category, question),
            question=decorate(rng, question, names_inside=not self.lower_case),
            answer=self.fill(self.answer, entry),
            expect=self.expect(entry, question),
        )

    def statement(self, rng: Random, entry: str) -> str:
        """A sentence that tells one entry, for documents."""
        return self.fill(rng.choice(self.statements or (self.answer,)), entry)


def swapped(table: dict[str, str]) -> dict[str, str]:
    """The table read backwards; only for values that are all different."""
    backwards = {value: entry for entry, value in table.items()}
    assert len(backwards) == len(table), "two entries share a value"
    return backwards

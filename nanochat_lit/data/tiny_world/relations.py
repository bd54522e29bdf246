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
    """What the relation is called in code."""
    category: str
    """Category of its questions in conversations and examinations."""
    table: dict[str, str]
    """Entry -> value."""
    questions: tuple[str, ...]
    """Ways to ask for an entry."""
    answer: str
    """The one form of the answer."""
    statements: tuple[str, ...] = ()
    """Ways to tell an entry in documents; empty: the answer."""
    follow_ups: tuple[str, ...] = ("And {x}?", "What about {x}?", "How about {x}?")
    """Ways to ask for another entry right after a question of this relation."""
    accepted: tuple[str, ...] = ("{y}",)
    """Phrases of which a right answer has one. The value alone does not do where question and answer can be swapped:
    "the opposite of cold is hot" is no answer to a question about hot."""
    invented: str = ""
    """Kind of invented name that fits {x} ("land", "animal", "element", "word"); empty: none."""
    lower_case: bool = True
    """Whether a question may be written in lower case altogether."""
    entries: tuple[str, ...] = field(init=False)
    """The table's keys."""
    pool: tuple[str, ...] = field(init=False)
    """The table's distinct values."""
    _expects: dict[str, Expect] = field(init=False, default_factory=dict, repr=False, compare=False)
    """What `expect` has made so far."""

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

    def expect(self, entry: str) -> Expect:
        """The entry's value, no other value of the table, and no other entry."""
        if entry not in self._expects:
            expect = one_of(self.table[entry], tuple(dict.fromkeys(self.pool + self.entries)), entry)
            expect["any"] = [self.fill(wording, entry) for wording in self.accepted]
            self._expects[entry] = expect
        return self._expects[entry]

    def make(self, rng: Random) -> Turn:
        """A turn that asks for one entry."""
        entry = rng.choice(self.entries)
        question = capitalise(self.fill(rng.choice(self.questions), entry))
        return Turn(
            category=self.category,
            key=phrase_key(self.category, question),
            question=decorate(rng, question, names_inside=not self.lower_case),
            answer=self.fill(self.answer, entry),
            expect=self.expect(entry),
        )

    def statement(self, rng: Random, entry: str) -> str:
        """A sentence that tells one entry, for documents."""
        return self.fill(rng.choice(self.statements or (self.answer,)), entry)


def swapped(table: dict[str, str]) -> dict[str, str]:
    """The table read backwards; only for values that are all different."""
    backwards = {value: entry for entry, value in table.items()}
    assert len(backwards) == len(table), "two entries share a value"
    return backwards

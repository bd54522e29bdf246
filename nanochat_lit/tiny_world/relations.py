"""Facts as relations: a table, the ways to ask for an entry, and the ways to state it.

A held-out item is a combination of one phrasing with one entry: the entry itself is always learned from other
phrasings, since nobody can know a capital that was never told.

Placeholders in wordings: {x} the entry asked about, {y} its value, {ax} and {ay} the same with a or an, {Ax} at the
start of a sentence, {X} capitalised.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from nanochat_lit.tiny_world.templates import template, template_names
from nanochat_lit.tiny_world.turns import Expect, Turn, capitalise, decorate, draw, one_of, phrase_key, with_article


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One kind of fact, for example the capitals of countries."""

    name: str
    """What the relation is called in code."""
    category: str
    """Category of its questions in conversations and held-out evaluations."""
    table: dict[str, str]
    """Entry -> value."""
    questions: Sequence[str]
    """Ways to ask for an entry."""
    answer: str
    """The one form of the answer."""
    statements: Sequence[str] = ()
    """Ways to tell an entry in documents; empty: the answer."""
    follow_ups: Sequence[str] = ("And {x}?", "What about {x}?", "How about {x}?")
    """Ways to ask for another entry right after a question of this relation."""
    accepted: Sequence[str] = ("{y}",)
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

    def ask(self, rng: Random, entry: str) -> Turn:
        """A turn that asks for this entry."""
        question = capitalise(self.fill(rng.choice(self.questions), entry))
        return Turn(
            category=self.category,
            key=phrase_key(self.category, question),
            question=decorate(rng, question, names_inside=not self.lower_case),
            answer=self.fill(self.answer, entry),
            expect=self.expect(entry),
        )

    def make(self, rng: Random) -> Turn:
        """A turn that asks for one entry."""
        return self.ask(rng, rng.choice(self.entries))

    def statement(self, rng: Random, entry: str) -> str:
        """A sentence that tells one entry, for documents."""
        return self.fill(rng.choice(self.statements or (self.answer,)), entry)


def _specs(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The entries of a template file; those under `for_each` once per unit, with its name for {unit}."""
    for entry in entries:
        for unit in entry.get("for_each", ()):
            yield from json.loads(json.dumps(entry["relations"]).replace("{unit}", unit))
        if "for_each" not in entry:
            yield dict(entry)


def _table(spec: dict[str, Any], file: dict[str, Any], known: dict[str, Relation]) -> dict[str, str]:
    """A relation's table: as listed, or of another relation, of pairs or of a list's neighbours."""
    if name := spec.pop("reverse_of", None):
        backwards = {value: entry for entry, value in known[name].table.items()}
        assert len(backwards) == len(known[name].table), f"two entries of {name} share a value"
        return backwards
    if pairs := spec.pop("both_ways", None):
        return {word: other for pair in pairs.items() for word, other in (pair, pair[::-1])}
    if following := spec.pop("following", None):
        cycle, by = file["lists"][following["list"]], int(following["by"])
        return {entry: cycle[(index + by) % len(cycle)] for index, entry in enumerate(cycle)}
    return spec.pop("table")


def _framed(wording: str | dict[str, str], frames: Sequence[str]) -> list[str]:
    """The wording, or what it says under `framed` in each of the frames."""
    return [wording] if isinstance(wording, str) else [frame.replace("{}", wording["framed"]) for frame in frames]


@cache
def relations(category: str) -> tuple[Relation, ...]:
    """The relations of a template file."""
    file = template(category)
    known: dict[str, Relation] = {}
    for spec in _specs(file["relations"]):
        table = _table(spec, file, known)
        frames = file.get("frames", ())
        spec["questions"] = [text for wording in spec["questions"] for text in _framed(wording, frames)]
        spec["lower_case"] = spec.get("lower_case") != "false"
        known[spec["name"]] = Relation(category=category, table=table, **spec)
    return tuple(known.values())


def relation(category: str, name: str) -> Relation:
    """The relation of this name."""
    return next(relation for relation in relations(category) if relation.name == name)


@cache
def all_relations(opposites: int = 1) -> tuple[Relation, ...]:
    """The relations of every category; that of opposites several times, since it is alone in its category."""
    first = ("facts", "days", *("opposites",) * opposites)
    others = (name for name in template_names("relations") if name not in first)
    return tuple(relation for category in (*first, *others) for relation in relations(category))


def choose(rng: Random, category: str) -> Relation:
    """A relation of the category, the larger tables more often, so that facts are told equally often."""
    known = relations(category)
    return known[0] if len(known) == 1 else rng.choices(known, [len(relation.entries) for relation in known])[0]


def sample(rng: Random, split: str, category: str) -> Turn:
    """A question of one of the category's relations."""
    return draw(rng, split, lambda rng: choose(rng, category).make(rng))

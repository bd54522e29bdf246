"""Intents: things that people ask in many ways.

A pattern like "Who [made|built] [you|nanochat]?" stands for every choice of its alternatives. The split is by whole
phrasing: a held-out phrasing is a new combination of words that training shows in other combinations.
"""

import itertools
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from nanochat_lit.tiny_world.splits import COMMON_PREFIX, normalise, split_of
from nanochat_lit.tiny_world.templates import template
from nanochat_lit.tiny_world.turns import Expect, Turn, decorate, draw, phrase_key


def _tidy(text: str) -> str:
    """Single spaces, and none before a mark."""
    return " ".join(text.split()).replace(" .", ".").replace(" ?", "?")


def expand(pattern: str) -> tuple[str, ...]:
    """Every phrasing of a pattern."""
    pieces = []
    rest = pattern
    while "[" in rest:
        before, _, rest = rest.partition("[")
        choices, _, rest = rest.partition("]")
        pieces += [(before,), tuple(choices.split("|"))]
    pieces.append((rest,))
    return tuple(dict.fromkeys(_tidy("".join(choice)) for choice in itertools.product(*pieces)))


@cache
def phrasings(category: str, key: str) -> tuple[str, ...]:
    """Every phrasing of the patterns that a template file lists under a key."""
    return tuple(phrasing for pattern in template(category)[key] for phrasing in expand(pattern))


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One thing that people ask in many ways, with its answers."""

    category: str
    """Category of its questions in conversations and held-out evaluations."""
    patterns: list[str]
    """Question patterns, see `expand`."""
    answers: list[str]
    """Answers, each as good as the other."""
    expect: Expect = field(default_factory=dict)
    """How another answer is judged."""
    common: list[str] = field(default_factory=list)
    """Phrasings that always belong to training."""
    name: str = ""
    """What code calls it, where it does."""
    min_shown: int = 0
    """A phrasing is held out only if at least this many training phrasings of the intent show each of its words."""
    polite: bool = True
    """Whether polite words may stand before or after a question."""
    phrasings: tuple[str, ...] = field(init=False)
    """Every phrasing of the patterns, the common ones several times."""

    def __post_init__(self) -> None:
        known = {normalise(phrasing): phrasing for pattern in self.patterns for phrasing in expand(pattern)}
        common = {normalise(phrasing): phrasing for phrasing in self.common}
        # Listed several times, since everybody asks these.
        object.__setattr__(self, "phrasings", (*(common.values()), *(common.values()), *(known | common).values()))
        object.__setattr__(self, "_always_training", frozenset(common) | self._with_rare_words(known, common))

    def _with_rare_words(self, known: Iterable[str], common: Container[str]) -> frozenset[str]:
        """The normalised phrasings with a word that training would show too seldom to be learned."""
        is_training = {key: key in common or split_of(phrase_key(self.category, key)) == "train" for key in known}
        shown = Counter(word for key, training in is_training.items() if training for word in set(key.split()))
        return frozenset(key for key in is_training if any(shown[word] < self.min_shown for word in key.split()))

    def make(self, rng: Random) -> Turn:
        """A turn in one of the phrasings."""
        question = rng.choice(self.phrasings)
        always_training = normalise(question) in self._always_training  # type: ignore[attr-defined]
        return Turn(
            category=self.category,
            key=(COMMON_PREFIX if always_training else "") + phrase_key(self.category, question),
            question=decorate(rng, question, polite=self.polite),
            answer=rng.choice(self.answers),
            expect=self.expect,
        )


@cache
def intents(category: str) -> tuple[Intent, ...]:
    """The intents of a template file; one with `times` is there that often."""
    file = template(category)
    options = {"min_shown": int(file.get("min_shown", 0)), "polite": file.get("polite") != "false"}
    found: list[Intent] = []
    for entry in file["intents"]:
        spec = dict(entry)
        times = int(spec.pop("times", 1))
        answers = spec.pop("answers", None) or [spec.pop("answer")]
        found += [Intent(category=category, answers=answers, **options, **spec)] * times
    return tuple(found)


@cache
def _weights(category: str) -> tuple[float, ...]:
    """The square root of the number of phrasings of each intent."""
    return tuple(len(intent.phrasings) ** 0.5 for intent in intents(category))


def named(category: str, name: str) -> Intent:
    """The intent of this name."""
    return next(intent for intent in intents(category) if intent.name == name)


def _choose(rng: Random, category: str, names: Sequence[str]) -> Intent:
    if names:
        return named(category, rng.choice(names))
    if template(category).get("weights") == "phrasings":
        return rng.choices(intents(category), _weights(category))[0]
    return rng.choice(intents(category))


def sample(rng: Random, split: str, category: str, names: Sequence[str] = ()) -> Turn:
    """A question of the category, in one of its intents or in one of those with these names."""
    return draw(rng, split, lambda rng: _choose(rng, category, names).make(rng))

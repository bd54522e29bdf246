"""Question patterns with alternatives, and the intents that they express.

A pattern like "Who [made|built] [you|nanochat]?" stands for every choice of its alternatives. The split is by whole
phrasing: a held-out phrasing is a new combination of words that training shows in other combinations.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from random import Random

from nanochat_lit.data.tiny_world.splits import COMMON_PREFIX, normalise, split_of
from nanochat_lit.data.tiny_world.turns import Expect, Turn, decorate, phrase_key


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


@dataclass(frozen=True)
class Intent:
    """One thing that people ask in many ways, with its answers."""

    category: str
    """Category of its questions in conversations and examinations."""
    patterns: tuple[str, ...]
    """Question patterns, see `expand`."""
    answers: tuple[str, ...]
    """Answers, each as good as the other."""
    expect: Expect = field(default_factory=dict)
    """How another answer is judged."""
    common: tuple[str, ...] = ()
    """Phrasings that always belong to training."""
    min_shown: int = 0
    """A phrasing is held out only if at least so many training phrasings of the intent show each of its words."""
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
            question=decorate(rng, question, polite=self.category != "smalltalk"),
            answer=rng.choice(self.answers),
            expect=self.expect,
        )

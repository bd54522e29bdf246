"""More about the letters of words: how many there are, the first, the last, and the word backwards."""

from __future__ import annotations

from random import Random

from nanochat_lit.tiny_world.templates import pick, template
from nanochat_lit.tiny_world.turns import Turn, decorate, draw, phrase_key

CATEGORY = "words"


def _make(rng: Random) -> Turn:
    word = pick(rng, "lexicon", "words")
    kind = rng.choice(template(CATEGORY)["kinds"])
    question = pick(rng, CATEGORY, kind).format(w=word)
    spelled = " ".join(word)
    answer, expect = {
        "length": (f"{word} is spelled {spelled} and has {len(word)} letters.", {"all": [f"{len(word)} letters"]}),
        "first": (f"The first letter of {word} is {word[0]}.", {"all": [f"{word} is {word[0]}"]}),
        "last": (f"{word} is spelled {spelled} and ends with {word[-1]}.", {"all": [f"ends with {word[-1]}"]}),
        "backwards": (f"{word} backwards is {' '.join(reversed(word))}", {"spelled": word[::-1]}),
    }[kind]
    return Turn(CATEGORY, phrase_key(CATEGORY, question), decorate(rng, question), answer, expect)


def sample(rng: Random, split: str) -> Turn:
    """A question about a word's letters."""
    return draw(rng, split, _make)

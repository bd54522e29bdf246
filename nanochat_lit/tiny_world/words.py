"""More about the letters of words: how many there are, the first, the last, and the word backwards."""

from random import Random

from nanochat_lit.tiny_world.templates import pick, template
from nanochat_lit.tiny_world.turns import Turn, decorate, draw, phrase_key
from nanochat_lit.tiny_world.unknown import invented_name, name_key

CATEGORY = "words"


def _make(rng: Random) -> Turn:
    is_new = rng.random() < 0.25  # an invented word, so that the way is learned and not the words
    word = invented_name(rng, "word") if is_new else pick(rng, "lexicon", "words")
    kind = rng.choice(template(CATEGORY)["kinds"])
    question = pick(rng, CATEGORY, kind).format(w=word)
    spelled = " ".join(word)
    answer, expect = {
        "length": (f"{word} is spelled {spelled} and has {len(word)} letters.", {"all": [f"{len(word)} letters"]}),
        "first": (f"The first letter of {word} is {word[0]}.", {"all": [f"{word} is {word[0]}"]}),
        "last": (f"{word} is spelled {spelled} and ends with {word[-1]}.", {"all": [f"ends with {word[-1]}"]}),
        "backwards": (f"{word} backwards is {' '.join(reversed(word))}", {"spelled": word[::-1]}),
    }[kind]
    key = name_key(word) if is_new else phrase_key(CATEGORY, question)
    return Turn(CATEGORY, key, decorate(rng, question), answer, expect)


def sample(rng: Random, split: str) -> Turn:
    """A question about a word's letters."""
    return draw(rng, split, _make)

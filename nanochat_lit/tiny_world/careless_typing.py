"""Questions as people type them: capitals, no punctuation, typing errors, emoji.

The question is one of another category; its item, and with it its split, stays that of the category.
"""

from random import Random

from nanochat_lit.tiny_world import intents, relations
from nanochat_lit.tiny_world.templates import pick, template
from nanochat_lit.tiny_world.turns import Turn

CATEGORY = "typing"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def _typing_error(rng: Random, word: str) -> str:
    """The word with a letter missing, doubled, swapped or replaced; the first letter stays."""
    at = rng.randrange(1, len(word))
    choice = rng.random()
    if choice < 0.3:
        return word[:at] + word[at + 1 :]
    if choice < 0.5:
        return word[:at] + word[at] + word[at:]
    if choice < 0.8 and at + 1 < len(word):
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + rng.choice(_ALPHABET) + word[at + 1 :]


def mistyped(rng: Random, question: str) -> str:
    """The question in another way of typing, or in two."""
    choice = rng.random()
    bare = question.rstrip("?.! ") or question
    if choice < 0.3:
        question = rng.choice((question, bare)).upper()
    elif choice < 0.45:
        question = bare.lower().replace("'", "").replace(",", "")
    elif choice < 0.55:
        question = bare + rng.choice(("??", "???", "!!", "?!", "...", " ?"))
    elif choice < 0.85:
        words = question.split(" ")
        long = [index for index, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        for index in rng.sample(long, min(len(long), rng.choice((1, 1, 2)))):
            words[index] = _typing_error(rng, words[index])
        question = " ".join(words)
        if rng.random() < 0.4:
            question = question.lower()
    if choice >= 0.85 or rng.random() < 0.08:
        question = f"{question}{rng.choice((' ', ''))}{pick(rng, CATEGORY, 'emoji')}"
    return question


def sample(rng: Random, split: str) -> Turn:
    """A question of a category that is asked in words, typed carelessly."""
    category = rng.choice(template(CATEGORY)["categories"])
    kind = relations if "relations" in template(category) else intents
    turn = kind.sample(rng, split, category)
    return turn._replace(category=CATEGORY, question=mistyped(rng, turn.question))

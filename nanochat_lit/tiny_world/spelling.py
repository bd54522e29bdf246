"""Spelling words letter by letter, and counting letters with the calculator's str.count.

The documents spell every word of the list in every split. What is held out: for spelling the pair of word and
phrasing, for counting the pair of word and letter.
"""

from random import Random

from nanochat_lit.tiny_world.templates import pick
from nanochat_lit.tiny_world.turns import Expect, Parts, Turn, decorate, draw, phrase_key, tool_answer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def spelling_of(word: str) -> str:
    """The answer that spells the word: its letters with spaces between them."""
    return f"{word} is spelled {' '.join(word)}"


def _make_spelling(rng: Random) -> Turn:
    word = pick(rng, "lexicon", "words")
    question = pick(rng, "spelling", "questions").format(w=word)
    return Turn(
        category="spelling",
        key=phrase_key("spelling", question),
        question=decorate(rng, question),
        answer=spelling_of(word),
        expect={"spelled": word},
    )


def count_key(word: str, letter: str) -> str:
    """The key of counting a letter in a word."""
    return f"counting:{word},{letter}"


def count_answer(word: str, letter: str) -> tuple[Parts, Expect]:
    """The answer that counts the letter with the calculator, and how another one is judged."""
    count = word.count(letter)
    call = f"'{word}'.count('{letter}')"
    sentence = f"The letter {letter} appears {count} time{'' if count == 1 else 's'} in {word}."
    return tool_answer(call, str(count), sentence), {"tool": str(count), "expressions": [call]}


def _make_counting(rng: Random) -> Turn:
    word = pick(rng, "lexicon", "words")
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(_LETTERS)
    question = decorate(rng, pick(rng, "counting", "questions").format(w=word, l=letter))
    return Turn("counting", count_key(word, letter), question, *count_answer(word, letter))


def sample(rng: Random, split: str) -> Turn:
    """A word to spell."""
    return draw(rng, split, _make_spelling)


def sample_counting(rng: Random, split: str) -> Turn:
    """A letter to count in a word."""
    return draw(rng, split, _make_counting)

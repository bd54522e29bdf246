"""Spelling words letter by letter, and counting letters with the calculator's str.count.

The documents spell every word of the list in every split. What is held out: for spelling the pair of word and
phrasing, for counting the pair of word and letter.
"""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.lexicon import WORDS
from nanochat_lit.data.tiny_world.turns import Turn, decorate, draw, phrase_key, tool_answer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_SPELL = (
    "How do you spell {w}?",
    "How is {w} spelled?",
    "Spell {w}.",
    "Spell the word {w}.",
    "Can you spell {w}?",
    "Can you spell the word {w}?",
    "How do you spell the word {w}?",
    "Tell me how to spell {w}.",
    "What are the letters of {w}?",
    "Which letters are in the word {w}?",
    "Spell {w} for me.",
    "How do I spell {w}?",
    "How do I write {w}?",
    "I need the spelling of {w}.",
    "What is the spelling of {w}?",
)
_COUNT = (
    "How many {l}'s are in {w}?",
    "How many {l}'s are in the word {w}?",
    "How many {l}'s are there in {w}?",
    "How many {l}'s does {w} have?",
    "How many times does {l} appear in {w}?",
    "How many times does the letter {l} appear in {w}?",
    "How often does {l} appear in {w}?",
    "How often is the letter {l} in {w}?",
    "Count the {l}'s in {w}.",
    "Count the letter {l} in the word {w}.",
    "How many letters {l} are in {w}?",
    "In {w}, how many {l}'s are there?",
    "What is the number of {l}'s in {w}?",
    "Tell me how many {l}'s are in {w}.",
)


def spelled(word: str) -> str:
    """The word's letters with spaces between them."""
    return " ".join(word)


def _make_spelling(rng: Random) -> Turn:
    word = rng.choice(WORDS)
    question = rng.choice(_SPELL).format(w=word)
    return Turn(
        category="spelling",
        key=phrase_key("spelling", question),
        question=decorate(rng, question),
        answer=f"{word} is spelled {spelled(word)}",
        expect={"spelled": word},
    )


def count_key(word: str, letter: str) -> str:
    """The key of counting a letter in a word."""
    return f"counting:{word},{letter}"


def count_expression(word: str, letter: str) -> str:
    """The calculator call that counts the letter."""
    return f"'{word}'.count('{letter}')"


def count_sentence(word: str, letter: str, count: int) -> str:
    """The answer in words."""
    return f"The letter {letter} appears {count} time{'' if count == 1 else 's'} in {word}."


def _make_counting(rng: Random) -> Turn:
    word = rng.choice(WORDS)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(_LETTERS)
    count = word.count(letter)
    expression = count_expression(word, letter)
    return Turn(
        category="counting",
        key=count_key(word, letter),
        question=decorate(rng, rng.choice(_COUNT).format(w=word, l=letter)),
        answer=tool_answer(expression, str(count), count_sentence(word, letter, count)),
        expect={"tool": str(count), "expressions": [expression]},
    )


def sample(rng: Random, split: str) -> Turn:
    """A word to spell."""
    return draw(rng, split, _make_spelling)


def sample_counting(rng: Random, split: str) -> Turn:
    """A letter to count in a word."""
    return draw(rng, split, _make_counting)

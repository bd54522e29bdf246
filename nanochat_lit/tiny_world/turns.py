"""One question and its answer, and the ways a person may word the question.

A Turn carries what training needs (question, answer) and what a held-out evaluation needs (expect). Its `key` names the item:
`draw` samples turns until one of the wanted split comes up.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from nanochat_lit.tiny_world.splits import normalise, split_of

Parts = list[dict[str, str]]
Expect = dict[str, Any]

_MAX_DRAWS = 100_000


class Turn(NamedTuple):
    """A question, its reference answer and how another answer to it is judged."""

    category: str
    key: str
    question: str
    answer: str | Parts
    expect: Expect
    system: str = ""
    """The system prompt, of the first turn of a conversation."""


def draw(rng: Random, split: str, make: Callable[[Random], Turn]) -> Turn:
    """The first turn that `make` gives in this split."""
    for _ in range(_MAX_DRAWS):
        turn = make(rng)
        if split_of(turn.key) == split:
            return turn
    raise AssertionError(f"{make.__name__} has no item in split {split}")


def phrase_key(category: str, question: str) -> str:
    """The key of an item that is its own wording, decoration aside."""
    return f"{category}:{normalise(question)}"


def with_article(noun: str) -> str:
    """The noun with a or an."""
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def capitalise(text: str) -> str:
    """The text with a capital first letter; the rest stays (str.capitalize would lower it)."""
    return text[:1].upper() + text[1:]


def one_of(value: str, pool: tuple[str, ...], question: str = "") -> Expect:
    """Expect this value and no other of the pool; what the question itself mentions may be repeated."""
    asked = f" {normalise(question)} "
    wanted = f" {normalise(value)} "
    none = [other for other in pool if f" {normalise(other)} " not in wanted and f" {normalise(other)} " not in asked]
    return {"any": [value], "none": none}


_PREFIXES = (
    "Please tell me: ", "Hi! ", "Hello! ", "Hey, ", "Okay, ", "Quick question: ", "Excuse me, ", "Now ", "So, ",
    "Please, ",
)  # fmt: skip


def decorate(rng: Random, question: str, names_inside: bool = False, polite: bool = True) -> str:
    """The question as some person might type it: plain, lower case, without punctuation, with a polite word.

    The plain wording is capitalised and punctuated. `names_inside` keeps capitals inside, for names that the answer
    must repeat as written; without `polite` no words are added: small talk is only written differently.
    """
    choice = rng.random() if polite else 0.78 * rng.random()
    if choice < 0.4:
        return question
    bare = question.rstrip("?.! ") or question
    first_lower = question[:1].lower() + question[1:] if not question.startswith(("I ", "I'")) else question
    if choice < 0.52:
        return bare
    if choice < 0.68:
        return (bare[:1].lower() + bare[1:]) if names_inside else bare.lower()
    if choice < 0.78:
        return first_lower if names_inside else question.lower()
    if choice < 0.86:
        return f"{bare}, please" + (question[len(bare) :] or ".")
    prefix = rng.choice(_PREFIXES)
    return prefix + (question if prefix.endswith("! ") else first_lower)


def tool_answer(expression: str, output: str, sentence: str) -> Parts:
    """An answer that asks the calculator first and then says the result."""
    return [
        {"type": "python", "text": expression},
        {"type": "python_output", "text": output},
        {"type": "text", "text": sentence},
    ]


def plain_text(answer: str | Parts) -> str:
    """What a person sees of an answer: its text parts."""
    if isinstance(answer, str):
        return answer
    return "".join(part["text"] for part in answer if part["type"] == "text")


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The turns as messages, user and assistant alternating, after the system prompt if there is one."""
    pairs = (
        ({"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}) for turn in turns
    )
    system = [{"role": "system", "content": turns[0].system}] if turns[0].system else []
    return system + [message for pair in pairs for message in pair]


def item_of(turns: Sequence[Turn], category: str) -> dict[str, Any]:
    """The held-out item of a chain of turns: all but the last answer."""
    return {"messages": messages(turns)[:-1], "category": category, "expect": turns[-1].expect}

"""Pairs of answers of which one is preferred: the shorter, the politer, or the right one.

A wrong answer is the right one with a mistake in one word, such as small models make. The right answer to another question
would be a bad choice: training makes it less likely, so the model forgets it.

A pair keeps what a right answer must contain (`expect`) and, where a style is preferred, what shows it (`prefer`), so
that other answers to the same question can be compared, too.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

from nanochat_lit.tiny_world.corpus import categories
from nanochat_lit.tiny_world.dialogues import block
from nanochat_lit.tiny_world.splits import check_split, normalise
from nanochat_lit.tiny_world.templates import template
from nanochat_lit.tiny_world.turns import Expect, Parts, Turn, messages, plain_text

CATEGORY = "preferences"
_MAX_TRIES = 200

Answer = str | Parts


def _styled(turn: Turn, category: str) -> tuple[Answer, Expect | None]:
    """The answer in the preferred style of the category that asked, and what shows that style."""
    known = template(CATEGORY)
    if category in known["shorter"]:
        ends = [match.end() for match in re.finditer(r"[.!?](?= |$)", plain_text(turn.answer))]
        short = next(text for end in ends if not _lacks(turn.expect, text := plain_text(turn.answer)[:end]))
        return short, {"max_words": len(normalise(short).split())}
    if category in known["politer"]:
        *parts, text = turn.answer if isinstance(turn.answer, list) else [{"type": "text", "text": turn.answer}]
        return [*parts, {"type": "text", "text": f"{text['text']} {known['closing']}"}], {"all": [known["closing"]]}
    return turn.answer, None


def _has(answer: Answer, phrase: str) -> bool:
    return f" {normalise(phrase)} " in f" {normalise(plain_text(answer))} "


def _lacks(expect: Expect, answer: Answer) -> bool:
    """Whether the answer lacks phrases or numbers that are expected."""
    wanted = [*expect.get("all", ()), *(str(expect[key]) for key in ("number", "tool") if key in expect)]
    wanted += [" ".join(expect["spelled"])] if "spelled" in expect else []
    has_any = "any" not in expect or any(_has(answer, phrase) for phrase in expect["any"])
    return not (has_any and all(_has(answer, phrase) for phrase in wanted))


def _misspelt(rng: Random, word: str) -> str:
    """The word with another digit, or with a letter left out, doubled or swapped with the next."""
    place = rng.choice([index for index, letter in enumerate(word) if letter.isalnum()])
    letter, after = word[place], word[place + 1 :]
    if letter.isdigit():
        return word[:place] + rng.choice([digit for digit in "123456789" if digit != letter]) + after
    return word[:place] + rng.choice((after, letter + letter + after, after[:1] + letter + after[1:]))


def _wrong(rng: Random, split: str, expect: Expect, right: Answer) -> Answer | None:
    """The right answer with a mistake in one word, or an answer about a known thing where nothing is known."""
    if "refuses" in expect:
        return block(rng, split, "facts")[-1].answer
    *parts, last = right if isinstance(right, list) else [{"type": "text", "text": right}]
    for _ in range(_MAX_TRIES):
        words = last["text"].split(" ")
        place = rng.choice([index for index, word in enumerate(words) if re.search(r"\w", word)])
        words[place] = _misspelt(rng, words[place])
        text = " ".join(words)
        if text != last["text"] and ("call" in expect or _lacks(expect, text)):
            return [*parts, {**last, "text": text}] if parts else text
    return None


def _pair(rng: Random, split: str) -> dict[str, Any] | None:
    known = template(CATEGORY)
    kind = rng.choice(("shorter", "politer", "right", "right", "right", "right"))
    others = [category for category in categories() if category not in known["left_out"]]
    category = rng.choice(others if kind == "right" else known[kind])
    turns = block(rng, split, category)
    turn = turns[-1]
    chosen, prefer = _styled(turn, category)
    rejected = _wrong(rng, split, turn.expect, chosen) if kind == "right" else turn.answer
    if rejected in (None, chosen):
        return None
    pair: dict[str, Any] = {
        "prompt": messages(turns)[:-1],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "kind": kind,
        "category": category,
        "expect": turn.expect,
    }
    return pair if prefer is None else {**pair, "prefer": prefer}


def preferences(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different pairs of a split, half of them of the right against the wrong, which also keeps what is known.

    Args:
        split: "train", "validation" (or "val") or "test"; no item is in two of them.
        count: How many.
        seed: Another seed gives other pairs.

    Returns:
        {"prompt": messages, "chosen": [message], "rejected": [message], "kind": "shorter" | "politer" | "right",
        "category": str, "expect": {...}, perhaps "prefer": {...}}; plain JSON, in TRL's format but for the parts of
        answers with a calculation.
    """
    split = check_split(split)
    rng = Random(f"{CATEGORY}:{split}:{seed}")
    pairs: dict[str, dict[str, Any]] = {}
    while len(pairs) < count:
        if pair := _pair(rng, split):
            pairs.setdefault(repr((pair["prompt"], pair["kind"])), pair)
    return list(pairs.values())

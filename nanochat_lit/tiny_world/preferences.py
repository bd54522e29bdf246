"""Pairs of answers of which one is preferred: the shorter, the politer, or the right one.

A pair keeps what a right answer must contain (`expect`) and, where a style is preferred, what shows it (`prefer`), so
that other answers to the same question can be compared, too.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

from nanochat_lit.tiny_world.dialogues import block
from nanochat_lit.tiny_world.exam import categories
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
    has_any = "any" not in expect or any(_has(answer, phrase) for phrase in expect["any"])
    return not (has_any and all(_has(answer, phrase) for phrase in wanted))


def _is_wrong(expect: Expect, answer: Answer, right: Answer) -> bool:
    """Whether an answer to another question, in words unlike the right one, is wrong."""
    differs = normalise(plain_text(answer)) != normalise(plain_text(right))
    return differs and (_lacks(expect, answer) or bool({"spelled", "refuses"} & set(expect)))


def _wrong(rng: Random, split: str, turn: Turn, category: str, right: Answer) -> Answer | None:
    """The answer to another question: of the category, or of a known thing where nothing is known."""
    for _ in range(_MAX_TRIES):
        asked = "facts" if category == "unknown" else category
        answer, _ = _styled(block(rng, split, asked)[-1], asked)
        if _is_wrong(turn.expect, answer, right):
            return answer
    return None


def _pair(rng: Random, split: str) -> dict[str, Any] | None:
    known = template(CATEGORY)
    kind = rng.choice(("shorter", "politer", "right", "right"))
    others = [category for category in categories() if category not in known["left_out"]]
    category = rng.choice(others if kind == "right" else known[kind])
    turns = block(rng, split, category)
    turn = turns[-1]
    chosen, prefer = _styled(turn, category)
    rejected = _wrong(rng, split, turn, category, chosen) if kind == "right" else turn.answer
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

"""Calculations with larger numbers or three operands: what the conversations never teach, for reinforcement learning.

The right number is all that an item expects: how it is found, in one call of the calculator or in two, is the model's
affair. A held-out item is the operands with their operations (in any order that gives the same), as in `arithmetic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from nanochat_lit.tiny_world.arithmetic import expression_key, people_and_things
from nanochat_lit.tiny_world.splits import check_split
from nanochat_lit.tiny_world.templates import template
from nanochat_lit.tiny_world.turns import Turn, capitalise, decorate, draw, item_of, tool_answer

CATEGORY = "harder_arithmetic"


def _larger(rng: Random, operation: str) -> tuple[int, int]:
    """Two operands beyond those of the conversations; the result has at most five digits."""
    if operation == "+":
        return rng.randrange(1000, 10_000), rng.randrange(1, rng.choice((10, 100, 1000, 10_000)))
    if operation == "-":
        a = rng.randrange(1000, 10_000)
        return a, rng.randrange(1, min(a, rng.choice((10, 100, 1000, 10_000))))
    if operation == "*":
        if rng.random() < 0.5:
            return rng.randrange(1000, 10_000), rng.randrange(2, 10)
        return rng.randrange(100, 1000), rng.randrange(10, 100)
    b, quotient = rng.randrange(2, 10), rng.randrange(200, 1000)
    return b * quotient, b


def _three(rng: Random, operations: str) -> tuple[int, int, int]:
    """Three operands of up to three digits whose result is not negative."""
    top = rng.choice((10, 100, 1000))
    if operations[0] == "*":
        a, b = rng.randrange(2, min(top, 100)), rng.randrange(2, 13)
        return a, b, rng.randrange(1, min(top, a * b))
    if operations == "++":
        return rng.randrange(1, top), rng.randrange(1, top), rng.randrange(1, top)
    if operations == "+-":
        a, b = rng.randrange(1, top), rng.randrange(1, top)
        return a, b, rng.randrange(1, a + b)
    total = rng.randrange(3, top)
    first, second = sorted(rng.sample(range(1, total), 2))
    return total, first, second - first


def _value(operations: str, operands: Sequence[int]) -> int:
    value = operands[0]
    for operation, operand in zip(operations, operands[1:], strict=True):  # no product or quotient stands second
        value = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[operation]
    return value


def _key(operations: str, operands: Sequence[int]) -> str:
    """The same for all orders of the operands that mean the same; of two operands it is that of the conversations."""
    first, *rest = operands
    if len(rest) == 1:
        return expression_key(first, operations, rest[0])
    if operations == "++":
        first, *rest = sorted(operands)
    elif operations == "--":
        rest.sort()
    else:
        first, rest[0] = sorted((first, rest[0]))
    return f"{CATEGORY}:{operations}:{','.join(map(str, (first, *rest)))}"


def _make(rng: Random) -> Turn:
    wordings = template(CATEGORY)
    operations = rng.choice(wordings["larger" if rng.random() < 0.5 else "three"])
    operands = _larger(rng, operations) if len(operations) == 1 else _three(rng, operations)
    words = dict(zip("abc", operands))  # noqa: B905 - two operands have no c
    if operations in wordings["problems"] and rng.random() < 0.3:
        question = wordings["problems"][operations].format(**words, **people_and_things(rng))
    else:
        asked = rng.choice(wordings["spoken"][operations]).format(**words)
        question = decorate(rng, capitalise(rng.choice(wordings["frames"]).format(e=asked)))
    value = str(_value(operations, operands))
    expression = str(operands[0]) + "".join(f"{o}{b}" for o, b in zip(operations, operands[1:], strict=True))
    answer = tool_answer(expression.replace("/", "//"), value, f"The answer is {value}.")
    return Turn(CATEGORY, _key(operations, operands), question, answer, {"number": value})


def sample(rng: Random, split: str) -> Turn:
    """A calculation with larger numbers or three operands."""
    return draw(rng, split, _make)


def problems(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different questions of a split, as items of a held-out evaluation.

    Args:
        split: "train", "validation" (or "val") or "test"; no item is in two of them.
        count: How many.
        seed: Another seed gives other questions.

    Returns:
        {"messages": [the question], "category": str, "expect": {"number": ...}}; plain JSON.
    """
    split = check_split(split)
    rng = Random(f"{CATEGORY}:{split}:{seed}")
    turns: dict[str, Turn] = {}
    while len(turns) < count:
        turn = sample(rng, split)
        turns.setdefault(turn.key, turn)
    return [item_of([turn], CATEGORY) for turn in turns.values()]

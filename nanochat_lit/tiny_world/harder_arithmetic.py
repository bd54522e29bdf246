"""Four operands, and word problems of two steps: what the conversations never teach, for reinforcement learning.

An item expects the right number only: whether it is found in one call of the calculator or in two does not matter. A
held-out item is the operands with their operations.
"""

import math
import re
from collections.abc import Sequence
from random import Random
from typing import Any

from nanochat_lit.tiny_world.arithmetic import people_and_things
from nanochat_lit.tiny_world.splits import check_split
from nanochat_lit.tiny_world.templates import template
from nanochat_lit.tiny_world.turns import Turn, capitalise, decorate, draw, item_of, messages, tool_answer

CATEGORY = "harder_arithmetic"


def _operands(rng: Random, operations: str) -> tuple[int, ...]:
    """Operands of up to three digits, small ones where they are multiplied, whose result is not negative."""
    while True:
        top = rng.choice((10, 100, 1000))
        sides = zip(f"+{operations}", f"{operations}+", strict=True)  # the signs before and after each operand
        found = tuple(rng.randrange(2, 30) if "*" in signs else rng.randrange(1, top) for signs in sides)
        if value_of(operations, found) >= 0:
            return found


def _call(operations: str, operands: Sequence[int]) -> str:
    return str(operands[0]) + "".join(f"{sign}{b}" for sign, b in zip(operations, operands[1:], strict=True))


def value_of(operations: str, operands: Sequence[int]) -> int:
    """The value of the operands joined by + - *, products first."""
    terms = re.findall(r"([+-]?)([\d*]+)", _call(operations, operands))
    return sum((-1 if sign == "-" else 1) * math.prod(map(int, factors.split("*"))) for sign, factors in terms)


def _make(rng: Random) -> Turn:
    wordings = template(CATEGORY)
    in_words = rng.random() < 0.5
    operations = rng.choice(tuple(wordings["problems" if in_words else "spoken"]))
    operands = _operands(rng, operations)
    words = dict(zip("abcd", operands))  # noqa: B905 - three operands have no d
    if in_words:
        question = rng.choice(wordings["problems"][operations]).format(**words, **people_and_things(rng))
    else:
        asked = rng.choice(wordings["spoken"][operations]).format(**words)
        question = decorate(rng, capitalise(rng.choice(wordings["frames"]).format(e=asked)))
    value, call = str(value_of(operations, operands)), _call(operations, operands)
    answer = tool_answer(call, value, f"The answer is {value}.")
    return Turn(
        CATEGORY, f"{CATEGORY}:{operations}:{','.join(map(str, operands))}", question, answer, {"number": value}
    )


def sample(rng: Random, split: str) -> Turn:
    """A calculation with four operands, or a word problem of two steps."""
    return draw(rng, split, _make)


def problems(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different questions of a split, as items of a held-out evaluation.

    Args:
        split: "train", "validation" (or "val") or "test"; no item is in two of them.
        count: How many.
        seed: Another seed gives other questions.

    Returns:
        {"messages": [the question], "category": str, "expect": {"number": ...}}; plain JSON. In training, the messages
        end with an answer, parts of which can start the model's.
    """
    split = check_split(split)
    rng = Random(f"{CATEGORY}:{split}:{seed}")
    turns: dict[str, Turn] = {}
    while len(turns) < count:
        turn = sample(rng, split)
        turns.setdefault(turn.key, turn)
    items = [item_of([turn], CATEGORY) for turn in turns.values()]
    if split == "train":
        for item, turn in zip(items, turns.values(), strict=True):
            item["messages"] = messages([turn])
    return items

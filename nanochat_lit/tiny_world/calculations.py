"""Calculations of any size and form: large numbers, three operands, brackets, decimals, negatives, powers, percent.

All go through the calculator. What has to be learned is to copy digits exactly into the call and out of the result. A
held-out item is the operands with their operations, as in `arithmetic`.
"""

import re
from collections.abc import Callable
from random import Random

from nanochat_lit.tiny_world.arithmetic import expression, expression_key, printed, rounded
from nanochat_lit.tiny_world.templates import pick, template
from nanochat_lit.tiny_world.turns import Turn, capitalise, decorate, draw, tool_answer

CATEGORY = "numbers"

# The kind's name in the template file, the call, its value, and the operands' words in the question.
Calculation = tuple[str, str, float, dict[str, str]]


def _large(rng: Random, digits: int = 6) -> int:
    """A number of at most `digits` digits, each length equally often; some repeat a digit, some end in zeros."""
    length = rng.randrange(1, digits + 1)
    choice = rng.random()
    if choice < 0.08:
        return int(rng.choice("123456789") * length)
    if choice < 0.16:
        return rng.randrange(1, 10) * 10 ** (length - 1)
    return rng.randrange(max(1, 10 ** (length - 1)), 10**length)


def _decimal(rng: Random) -> float:
    """A number with one or two decimals."""
    whole = rng.choice((_large(rng, 1), _large(rng, 2), _large(rng, 3)))
    return round(whole + rng.randrange(1, 100) / 100, rng.choice((1, 2)))


def _two(rng: Random) -> Calculation:
    operation = rng.choice("++--**")
    digits = 6 if operation in "+-" else rng.choice((4, 6))
    a, b = _large(rng, digits), _large(rng, digits)
    return operation, f"{a}{operation}{b}", {"+": a + b, "-": a - b, "*": a * b}[operation], {"a": str(a), "b": str(b)}


def _quotient(rng: Random) -> Calculation:
    a, b = _large(rng, rng.choice((2, 3, 6))), rng.randrange(2, rng.choice((13, 100)))
    if rng.random() < 0.3:
        a *= b
    return "/", expression(a, "/", b), a / b, {"a": str(a), "b": str(b)}


def _of_decimals(rng: Random) -> Calculation:
    operation = rng.choice("+-*")
    a, b = _decimal(rng), _decimal(rng) if rng.random() < 0.7 else _large(rng, 2)
    value = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return operation, expression(a, operation, b), value, {"a": str(a), "b": str(b)}


def _negative(rng: Random) -> Calculation:
    operation = rng.choice("+-*")
    a, b = -_large(rng, 3), _large(rng, 3)
    value = {"+": a + b, "-": a - b, "*": a * b}[operation]
    spelled = rng.choice((f"-{-a}", f"-{-a}", f"minus {-a}"))
    return operation, f"{a}{operation}{b}", value, {"a": spelled, "b": str(b)}


def _three(rng: Random) -> Calculation:
    first, second = rng.choice(template(CATEGORY)["three"])
    digits = 3 if "*" in (first, second) else 4
    a, b, c = (_large(rng, digits) for _ in range(3))
    do = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}
    value = do[first](a, do[second](b, c)) if second == "*" and first != "*" else do[second](do[first](a, b), c)
    return first + second, f"{a}{first}{b}{second}{c}", value, {"a": str(a), "b": str(b), "c": str(c)}


def _bracket(rng: Random) -> Calculation:
    inner = rng.choice("+-")
    a, b, c = _large(rng, 3), _large(rng, 2), _large(rng, 2)
    value = a + b if inner == "+" else a - b
    words = {"a": str(a), "b": str(b), "c": str(c), "o": inner}
    choice = rng.random()
    if choice < 0.4:
        return "()*", f"({a}{inner}{b})*{c}", value * c, words
    if choice < 0.8:
        return "*()", f"{c}*({a}{inner}{b})", value * c, words
    return "()/", rounded(f"({a}{inner}{b})/{c}"), value / c, words


def _power(rng: Random) -> Calculation:
    if rng.random() < 0.3:
        root = rng.randrange(2, 100)
        square = root * root if rng.random() < 0.7 else _large(rng, 3)
        return "root", rounded(f"{square}**0.5"), square**0.5, {"a": str(square)}
    exponent = rng.choice((2, 2, 2, 3, 3, 4, 5, 10))
    a = 2 if exponent == 10 else _large(rng, 3 if exponent == 2 else 2 if exponent == 3 else 1)
    kind = {2: "square", 3: "cube"}.get(exponent, "power") if rng.random() < 0.5 else "power"
    return kind, f"{a}**{exponent}", a**exponent, {"a": str(a), "b": str(exponent)}


def _percent(rng: Random) -> Calculation:
    part, whole = rng.choice((rng.randrange(1, 100), rng.randrange(1, 20) * 5)), _large(rng, 4)
    return "%", rounded(f"{whole}*{part}/100"), whole * part / 100, {"a": str(part), "b": str(whole)}


_KINDS: tuple[tuple[Callable[[Random], Calculation], int], ...] = (
    (_two, 8), (_quotient, 3), (_of_decimals, 3), (_negative, 2), (_three, 4), (_bracket, 3), (_power, 3), (_percent, 2),
)  # fmt: skip


def _asked(rng: Random, wording: str, words: dict[str, str]) -> str:
    """The question; symbols with or without spaces around them, thousands sometimes with commas."""
    if rng.random() < 0.05:
        words = {name: f"{int(text):,}" if text.isdigit() else text for name, text in words.items()}
    asked = wording.format(**words)
    if rng.random() < 0.4:
        asked = re.sub(r" ([-+*/x]) ", r"\1", asked)
    return decorate(rng, capitalise(pick(rng, CATEGORY, "frames").format(e=asked)))


def _make(rng: Random) -> Turn:
    makers, weights = zip(*_KINDS, strict=True)
    kind, call, value, words = rng.choices(makers, weights)[0](rng)
    result = printed(value)
    is_plain = kind in ("+", "-", "*", "/") and words["a"].isdigit() and words["b"].isdigit()
    key = expression_key(int(words["a"]), kind, int(words["b"])) if is_plain else f"{CATEGORY}:{call}"
    question = _asked(rng, rng.choice(template(CATEGORY)["spoken"][kind]), words)
    return Turn(CATEGORY, key, question, tool_answer(call, result, f"The answer is {result}."), {"number": result})


def _make_by_zero(rng: Random) -> Turn:
    a = str(_large(rng, 4))
    wording = rng.choice(template(CATEGORY)["spoken"]["/"])
    question = _asked(rng, wording, {"a": a, "b": rng.choice(("0", "0", "zero"))})
    return Turn(
        CATEGORY, f"{CATEGORY}:{a}/0", question, "Nothing can be divided by zero.", {"all": ["divided by zero"]}
    )


def sample(rng: Random, split: str) -> Turn:
    """A calculation."""
    return draw(rng, split, _make_by_zero if rng.random() < 0.03 else _make)

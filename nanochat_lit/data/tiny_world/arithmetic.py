"""Sums through the calculator, bare and in word problems of one step.

A held-out item is the pair of operands with its operation (a sum or product in either order), wherever it appears:
questions, word problems and the plain lines of the documents use the same keys.
"""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.lexicon import NAMES, OBJECTS, PRONOUNS
from nanochat_lit.data.tiny_world.turns import Expect, Turn, capitalise, decorate, draw, tool_answer


def value_of(a: int, operation: str, b: int) -> int:
    """The whole number that a operation b gives; divisions must come out even."""
    if operation == "+":
        return a + b
    if operation == "-":
        return a - b
    if operation == "*":
        return a * b
    assert a % b == 0, f"{a}/{b} is not whole"
    return a // b


def expression(a: int, operation: str, b: int) -> str:
    """What the calculator is asked; whole division, whose result is printed without a fraction."""
    return f"{a}{'//' if operation == '/' else operation}{b}"


def expression_key(a: int, operation: str, b: int) -> str:
    """The key of an expression; the order of operands matters in divisions alone (in differences it is only the sign)."""
    if operation in "+*-" and b < a:
        a, b = b, a
    return f"arithmetic:{a}{operation}{b}"


def expect_value(a: int, operation: str, b: int) -> Expect:
    """A calculator call for the expression, and its value in the answer."""
    expressions = [expression(a, operation, b)]
    if operation == "/":
        expressions.append(f"{a}/{b}")
    if operation in "+*" and a != b:
        expressions.append(f"{b}{operation}{a}")
    return {"tool": str(value_of(a, operation, b)), "expressions": expressions}


def operands(rng: Random, operation: str) -> tuple[int, int]:
    """Operands of up to three digits."""
    if operation == "+":
        top = rng.choice((100, 100, 1000))
        return rng.randrange(1, top), rng.randrange(1, top)
    if operation == "-":
        top = rng.choice((100, 100, 1000))
        a, b = rng.randrange(1, top), rng.randrange(1, top)
        return (a, b) if a >= b or rng.random() < 0.1 else (b, a)
    if operation == "*":
        return rng.randrange(2, 100), rng.randrange(2, rng.choice((13, 100)))
    b, quotient = rng.randrange(2, 20), rng.randrange(2, 50)
    return b * quotient, b


_ASK = {
    "+": (
        "{a} + {b}",
        "{a}+{b}",
        "{a} plus {b}",
        "{a} and {b} together",
        "the sum of {a} and {b}",
    ),
    "-": ("{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} take away {b}", "the difference {a} minus {b}"),
    "*": ("{a} * {b}", "{a}*{b}", "{a} times {b}", "{a} multiplied by {b}", "{a} x {b}", "the product of {a} and {b}"),
    "/": ("{a} / {b}", "{a}/{b}", "{a} divided by {b}", "{a} over {b}"),
}
_FRAMES = (
    "What is {e}?",
    "What is {e}?",
    "What's {e}?",
    "Calculate {e}.",
    "Compute {e}.",
    "Can you calculate {e}?",
    "How much is {e}?",
    "Tell me {e}.",
    "Work out {e}.",
    "{e} = ?",
    "{e}",
    "I need to know {e}.",
    "What do you get for {e}?",
    "Could you work out {e}?",
)
_ORDERS = {
    "+": ("Add {a} and {b}.", "Add {b} to {a}.", "Please add {a} and {b}."),
    "-": ("Subtract {b} from {a}.", "Take {b} away from {a}."),
    "*": ("Multiply {a} by {b}.", "Multiply {a} and {b}."),
    "/": ("Divide {a} by {b}.",),
}


def _make_sum(rng: Random) -> Turn:
    operation = rng.choice("++--**/")
    a, b = operands(rng, operation)
    if rng.random() < 0.2:
        question = rng.choice(_ORDERS[operation]).format(a=a, b=b)
    else:
        asked = rng.choice(_ASK[operation]).format(a=a, b=b)
        question = capitalise(rng.choice(_FRAMES).format(e=asked))
    value = str(value_of(a, operation, b))
    return Turn(
        category="arithmetic",
        key=expression_key(a, operation, b),
        question=decorate(rng, question),
        answer=tool_answer(expression(a, operation, b), value, f"The answer is {value}."),
        expect=expect_value(a, operation, b),
    )


# (operation, question, answer): {n} a name, {m} another, {he} and {his} for the first, {o} the things, {v} the value.
_PROBLEMS = (
    ("+", "{n} has {a} {o} and {m} gives {him} {b} more. How many {o} does {n} have now?", "{n} has {v} {o} now."),
    ("+", "{n} has {a} {o}. {He} finds {b} more. How many {o} does {n} have now?", "{n} has {v} {o} now."),
    ("+", "{n} has {a} {o} and {m} has {b}. How many {o} do they have together?", "Together they have {v} {o}."),
    ("+", "There are {a} {o} in a box. {n} puts in {b} more. How many {o} are in the box?", "There are {v} {o} now."),
    ("+", "{n} bought {a} {o} on Monday and {b} on Tuesday. How many {o} is that?", "That is {v} {o}."),
    ("-", "{n} has {a} {o} and gives {b} to {m}. How many {o} are left?", "{v} {o} are left."),
    ("-", "{n} has {a} {o}. {He} loses {b} of them. How many {o} does {n} have left?", "{n} has {v} {o} left."),
    ("-", "There are {a} {o} on the table. {n} takes {b}. How many {o} are left?", "{v} {o} are left."),
    ("-", "{n} had {a} {o} and sold {b}. How many {o} are left?", "{v} {o} are left."),
    ("-", "{n} has {a} {o}, {m} has {b}. How many more does {n} have?", "{n} has {v} more."),
    ("*", "{n} has {a} boxes with {b} {o} in each. How many {o} is that?", "That is {v} {o}."),
    ("*", "There are {a} bags. Each bag holds {b} {o}. How many {o} are there in all?", "There are {v} {o} in all."),
    ("*", "{n} buys {a} {o}. Each one costs {b} coins. How many coins does {he} pay?", "{He} pays {v} coins."),
    ("*", "{n} collects {b} {o} every day. How many {o} does {he} have after {a} days?", "{n} has {v} {o} then."),
    ("/", "{n} shares {a} {o} among {b} friends. How many {o} does each friend get?", "Each friend gets {v} {o}."),
    ("/", "{a} {o} are put into {b} equal bags. How many {o} are in each bag?", "Each bag has {v} {o}."),
    ("/", "{n} puts {a} {o} in {b} equal rows. How many {o} are in one row?", "One row has {v} {o}."),
)


def _problem_operands(rng: Random, operation: str) -> tuple[int, int]:
    if operation == "+":
        return rng.randrange(2, 100), rng.randrange(2, 100)
    if operation == "-":
        b = rng.randrange(2, 90)
        return b + rng.randrange(2, 100 - b + 1 if b < 98 else 3), b
    if operation == "*":
        return rng.randrange(2, 20), rng.randrange(2, 20)
    b, quotient = rng.randrange(2, 13), rng.randrange(2, 20)
    return b * quotient, b


def _make_problem(rng: Random) -> Turn:
    operation, question, answer = rng.choice(_PROBLEMS)
    a, b = _problem_operands(rng, operation)
    name, other = rng.sample(NAMES, 2)
    he, him, his = PRONOUNS[name]
    value = value_of(a, operation, b)
    words = {"a": a, "b": b, "v": value, "n": name, "m": other, "he": he, "him": him, "his": his}
    words |= {"He": capitalise(he), "o": rng.choice(OBJECTS)[1]}
    return Turn(
        category="word_problems",
        key=expression_key(a, operation, b),
        question=decorate_problem(rng, question.format(**words)),
        answer=tool_answer(expression(a, operation, b), str(value), answer.format(**words)),
        expect=expect_value(a, operation, b),
    )


def decorate_problem(rng: Random, question: str) -> str:
    """The problem as it stands, or with a word before it."""
    choice = rng.random()
    if choice < 0.8:
        return question
    return rng.choice(("Can you solve this? ", "Here is a problem. ", "Help me with this: ", "A puzzle: ")) + question


def sample(rng: Random, split: str) -> Turn:
    """A calculation with two operands."""
    return draw(rng, split, _make_sum)


def sample_problem(rng: Random, split: str) -> Turn:
    """A word problem of one step."""
    return draw(rng, split, _make_problem)

"""Sums through the calculator, bare and in word problems of one step.

A held-out item is the pair of operands with its operation (a sum or product in either order), wherever it appears:
questions, word problems and the plain lines of the documents use the same keys.
"""

from random import Random

from nanochat_lit.tiny_world.templates import names, pick, pronouns, template
from nanochat_lit.tiny_world.turns import Expect, Turn, capitalise, decorate, draw, tool_answer


def value_of(a: int, operation: str, b: int) -> int:
    """The whole number that a operation b gives; divisions must come out even."""
    if operation == "/":
        assert a % b == 0, f"{a}/{b} is not whole"
        return a // b
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


def rounded(expression: str) -> str:
    """The expression to four decimals, for results that may have a fraction: the calculator prints whole ones without."""
    return f"round({expression}, 4)"


def printed(value: float) -> str:
    """The value as the calculator prints it: rounded to four decimals, whole numbers without a fraction."""
    value = round(value, 4)
    return str(int(value) if value == int(value) else value)


def expression(a: float, operation: str, b: float) -> str:
    """What the calculator is asked; a quotient is rounded, and so is what has decimals."""
    call = f"{a}{operation}{b}"
    return rounded(call) if operation == "/" or isinstance(a, float) or isinstance(b, float) else call


def expression_key(a: float, operation: str, b: float) -> str:
    """The key of an expression; the order of operands matters in divisions alone (in differences it is only the sign)."""
    if operation in "+*-" and b < a:
        a, b = b, a
    return f"arithmetic:{a}{operation}{b}"


def calculation(
    a: int, operation: str, b: int, question: str, category: str, answer: str = "The answer is {v}."
) -> Turn:
    """A turn that asks the calculator and says the value, {v} in the answer."""
    value = str(value_of(a, operation, b))
    expressions = [expression(a, operation, b)]
    if operation == "/":
        expressions += [f"{a}/{b}", f"{a}//{b}"]
    if operation in "+*" and a != b:
        expressions.append(f"{b}{operation}{a}")
    expect: Expect = {"tool": value, "expressions": expressions}
    reply = tool_answer(expressions[0], value, answer.replace("{v}", value))
    return Turn(category, expression_key(a, operation, b), question, reply, expect)


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


def _make_sum(rng: Random) -> Turn:
    wordings = template("arithmetic")
    operation = rng.choice("++--**/")
    a, b = operands(rng, operation)
    if rng.random() < 0.2:
        question = rng.choice(wordings["orders"][operation]).format(a=a, b=b)
    else:
        asked = rng.choice(wordings["spoken"][operation]).format(a=a, b=b)
        question = capitalise(rng.choice(wordings["frames"]).format(e=asked))
    return calculation(a, operation, b, decorate(rng, question), "arithmetic")


def _problem_operands(rng: Random, operation: str, top: int = 100) -> tuple[int, int]:
    """Operands below `top` (factors below a fifth of it) that leave more than one."""
    if operation == "+":
        return rng.randrange(2, top), rng.randrange(2, top)
    if operation == "-":
        b = rng.randrange(1, top - 2)
        return rng.randrange(b + 2, top + 1), b
    b, other = rng.randrange(2, max(5, min(top // 5, 13))), rng.randrange(2, max(5, top // 5))
    return (other, b) if operation == "*" else (b * other, b)


def people_and_things(rng: Random) -> dict[str, str]:
    """Words of a problem: {n} a name, {m} another, {he} {him} {his} {He} the first's pronouns, {o} things."""
    name, other = rng.sample(names(), 2)
    he, him, his = pronouns(name)
    things = pick(rng, "lexicon", "objects")
    return {"n": name, "m": other, "he": he, "him": him, "his": his, "He": capitalise(he), "o": things}


def _make_problem(rng: Random) -> Turn:
    operation, question, answer = pick(rng, "word_problems", "problems")
    a, b = _problem_operands(rng, operation)
    words = people_and_things(rng)
    if rng.random() < 0.3:  # small numbers, which may be written in words
        a, b = _problem_operands(rng, operation, 13)
    in_words = template("word_problems")["numbers"]
    said = [in_words[n] if n < len(in_words) and rng.random() < 0.3 else str(n) for n in (a, b)]
    question = capitalise(question.format(a=said[0], b=said[1], **words))
    if rng.random() >= 0.8:
        question = pick(rng, "word_problems", "openings") + question
    return calculation(a, operation, b, question, "word_problems", answer.format(v="{v}", **words))


def sample(rng: Random, split: str) -> Turn:
    """A calculation with two operands."""
    return draw(rng, split, _make_sum)


def sample_problem(rng: Random, split: str) -> Turn:
    """A word problem of one step."""
    return draw(rng, split, _make_problem)

"""The calculator tool: arithmetic, rounding and counting letters.

Model output is untrusted and never evaluated by Python itself. A scanner admits only numbers, operators, quoted text,
`.count`, `round`, `max` and `min`, Python's parser builds a tree, and an interpreter computes it with limits on length, depth and size. Every
admitted expression is cheap, so it needs no timeout and can be called from any thread.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

MAX_EXPRESSION_CHARS = 256
"""Maximum length of an expression; also bounds the parser's nesting depth."""

MAX_DEPTH = 64
"""Maximum depth of brackets and of the tree; the parser's own limit depends on the Python version."""

MAX_INT_BITS = 1024
"""Largest integer, about 308 digits, the range of a float."""

MAX_ROUND_DIGITS = 12
"""Largest number of decimals to round to."""

MAX_RESULT_CHARS = 128
"""Maximum length of a result, which is inserted into the model's context."""

# One token at the start of the remaining text. Nothing else reaches the parser, so it never warns (warning filters are
# shared by threads), never sees a name, and strings never have escapes or prefixes.
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
      | (?P<number>(?:\d+(?:,\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<count>\.count\b)
      | (?P<function>(?:round|max|min)(?=\())
      | (?P<comma>,)
      | (?P<operator>\*\*|//|[-+*/%()])
      | (?P<string>'[^'\\\x00-\x1f\x7f]*'|"[^"\\\x00-\x1f\x7f]*")
    """,
    re.VERBOSE | re.ASCII,
)

_BINARY: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[..., Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class _RefusedError(Exception):
    """The expression is not supported."""


def calculate(expression: str) -> str | None:
    """Return the value of an arithmetic expression as Python prints it.

    Numbers may contain commas ("1,234+1"). Division returns a float as in Python: 12/4 is "3.0". round(12/4, 2) is "3":
    a rounded whole number has no fraction. A space separates the arguments of round, max and min: "1,2" is 12. The
    only operation on text is counting: 'strawberry'.count('r').

    Args:
        expression: Expression written by the model.

    Returns:
        The result, or None if it cannot be computed: invalid syntax, division by zero, too long, too large.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        return None
    try:
        tree = ast.parse(_admitted(expression), mode="eval")
        value = _value(tree.body, MAX_DEPTH)
    except (_RefusedError, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None  # the parser reports too many brackets as MemoryError or RecursionError
    result = str(value)
    return result if len(result) <= MAX_RESULT_CHARS else None


def _admitted(expression: str) -> str:
    """Return the expression without commas in numbers; raise if it contains other tokens."""
    kept = []
    position = depth = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise _RefusedError
        text = match.group()
        depth += (text == "(") - (text == ")")
        if depth > MAX_DEPTH:
            raise _RefusedError
        kept.append(text.replace(",", "") if match.lastgroup == "number" else text)
        position = match.end()
    return "".join(kept).strip()


def _value(node: ast.expr, depth: int) -> int | float:
    if depth == 0:
        raise _RefusedError
    if isinstance(node, ast.Constant):
        return _checked(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _checked(_UNARY[type(node.op)](_value(node.operand, depth - 1)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, depth - 1), _value(node.right, depth - 1)
        if isinstance(node.op, ast.Pow):
            _check_power(left, right)
        return _checked(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call):
        return _of_two(node.func.id, node, depth) if isinstance(node.func, ast.Name) else _count(node)
    raise _RefusedError


def _of_two(function: str, node: ast.Call, depth: int) -> int | float:
    """Max or min of two numbers, or round(`number`, `digits`), which is an int if it is whole."""
    if len(node.args) != 2:
        raise _RefusedError
    number, digits = (_value(argument, depth - 1) for argument in node.args)
    if function in ("max", "min"):
        return max(number, digits) if function == "max" else min(number, digits)
    if not isinstance(digits, int) or not 0 <= digits <= MAX_ROUND_DIGITS:
        raise _RefusedError
    rounded = round(number, digits)
    return _checked(int(rounded) if rounded == int(rounded) else rounded)


def _count(node: ast.Call) -> int:
    """`text`.count(`part`) with two literal strings."""
    function = node.func
    if not (isinstance(function, ast.Attribute) and function.attr == "count" and len(node.args) == 1):
        raise _RefusedError
    text, part = function.value, node.args[0]
    if not (isinstance(text, ast.Constant) and isinstance(part, ast.Constant)):
        raise _RefusedError
    if not (isinstance(text.value, str) and isinstance(part.value, str)):
        raise _RefusedError
    return text.value.count(part.value)


def _check_power(base: float, exponent: float) -> None:
    """Reject large integer powers before computing them: 9**9**9 would take minutes and gigabytes."""
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and exponent > 0 and abs(base) > 1 and int(base).bit_length() * exponent > 2 * MAX_INT_BITS:
        raise _RefusedError


def _checked(value: object) -> int | float:
    """Return the value if it is a finite int or float within the limits (not complex, str or bool)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _RefusedError
    if isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise _RefusedError
    elif not math.isfinite(value):
        raise _RefusedError
    return value

"""The calculator that a model may call: arithmetic and counting letters, nothing else.

What a model writes is untrusted, so nothing is ever evaluated by Python itself: a scanner admits numbers, operators, quoted
text and `.count`, Python's parser builds a tree, and a small walker computes it under limits on length, depth and size.
It needs no clock, signal or process: every admitted expression is cheap, so any thread may call it.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

MAX_EXPRESSION_CHARS = 256
"""Longest expression; it also bounds how deep the parser can nest."""

MAX_DEPTH = 64
"""Most open brackets, and the deepest tree that is walked; what the parser itself allows differs between versions."""

MAX_INT_BITS = 1024
"""Largest whole number, about 308 digits: what a float can still hold."""

MAX_RESULT_CHARS = 128
"""Longest result; it is forced into the model's context."""

# One token at the start of what is left. Nothing else gets as far as the parser, so it never warns (a warning filter is
# state that threads share), never sees a name, and a string never has an escape or a prefix.
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
      | (?P<number>(?:\d+(?:,\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<count>\.count\b)
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
    """The expression is outside what the calculator does."""


def calculate(expression: str) -> str | None:
    """The value of an arithmetic expression as Python would print it.

    Numbers may hold commas ("1,234+1"). Whole division keeps Python's form: 12/4 is "3.0". Text can only be counted in:
    'strawberry'.count('r').

    Args:
        expression: What the model wrote.

    Returns:
        The result, or None for whatever cannot be computed: bad syntax, division by zero, too long, too large.
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
    """The expression without commas in its numbers, if it holds nothing but the calculator's tokens."""
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
        return _count(node)
    raise _RefusedError


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
    """Refuse a power of whole numbers before it is computed: 9**9**9 would take minutes and gigabytes."""
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and exponent > 0 and abs(base) > 1 and int(base).bit_length() * exponent > 2 * MAX_INT_BITS:
        raise _RefusedError


def _checked(value: object) -> int | float:
    """The value itself if it is a finite number of allowed size (not a complex one, text or a truth value)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _RefusedError
    if isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise _RefusedError
    elif not math.isfinite(value):
        raise _RefusedError
    return value

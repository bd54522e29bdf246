"""One noun per file, readable in one sitting: files of at most 450 lines, functions of at most 50 beside their docstring.

Docstrings do not count: those of commands and modules are the text of --help, a line for every option.
"""

import ast

import pytest

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 50


def _sources(package_root):
    return sorted(package_root.rglob("*.py"))


def _functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _num_lines(function):
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    head = function.body[0]
    is_docstring = isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant)
    return function.end_lineno - first + 1 - (head.end_lineno - head.lineno + 1 if is_docstring else 0)


def test_files_are_short(package_root):
    lengths = {str(p.relative_to(package_root)): len(p.read_text("utf-8").splitlines()) for p in _sources(package_root)}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short(package_root):
    too_long = {}
    for path in _sources(package_root):
        for function in _functions(ast.parse(path.read_text("utf-8"))):
            if _num_lines(function) > MAX_FUNCTION_LINES:
                too_long[f"{path.relative_to(package_root)}:{function.lineno} {function.name}"] = _num_lines(function)
    assert too_long == {}


def test_nothing_is_called_utils(package_root):
    vague = {"utils", "util", "helpers", "helper", "misc", "registry", "factory"}
    assert [str(p) for p in _sources(package_root) if p.stem in vague or p.parent.name in vague] == []


@pytest.mark.parametrize(("body", "expected"), [("    pass\n", 2), ("    pass\n" * 60, 61)])
def test_the_ruler_measures_functions(body, expected):
    (function,) = _functions(ast.parse("def f():\n" + body))
    assert _num_lines(function) == expected

"""Fields of frozen dataclasses carry a docstring each: it is the command line's help."""

import ast

import pytest


def _is_frozen_dataclass(node):
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == "dataclass":
            return any(k.arg == "frozen" and getattr(k.value, "value", False) for k in decorator.keywords)
    return False


def undocumented_fields(source):
    """Names "Class.field" of public frozen dataclasses' fields that no string literal follows."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_") or not _is_frozen_dataclass(node):
            continue
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign) or "ClassVar" in ast.unparse(statement.annotation):
                continue
            documented = (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            )
            if not documented:
                missing.append(f"{node.name}.{ast.unparse(statement.target)}")
    return missing


def test_every_field_says_what_it_is(package_root):
    found = {}
    for path in sorted(package_root.rglob("*.py")):
        if names := undocumented_fields(path.read_text("utf-8")):
            found[str(path.relative_to(package_root))] = names
    assert found == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@dataclass(frozen=True)\nclass A:\n    x: int = 1\n    y: int = 2\n    'Doc.'\n", ["A.x"]),
        ("@dataclass(frozen=True)\nclass A:\n    x: int\n    'Doc.'\n    def f(self): ...\n", []),
        ("@dataclass\nclass A:\n    x: int\n", []),
    ],
)
def test_missing_docstrings_are_seen(source, expected):
    assert undocumented_fields(source) == expected

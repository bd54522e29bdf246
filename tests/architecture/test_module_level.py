"""Module level holds definitions only: statements that do something at import are found by reading the syntax tree."""

import ast

import pytest

# Calls that only build a value.
HARMLESS = {
    "TypeVar", "ParamSpec", "NewType", "namedtuple", "frozenset", "tuple", "dict", "list", "set", "field", "dataclass",
    "re.compile", "logging.getLogger", "getLogger", "MappingProxyType", "Path", "float", "int", "range", "len", "chr",
    "ord", "sorted", "zip", "enumerate", "max", "min", "sum", "math.sqrt", "math.log", "tuple.fromkeys", "dict.fromkeys",
    "str.maketrans", "torch.device", "library.custom_op", "SamplingParams",
}  # fmt: skip
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)


def _is_constant_expression(node):
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    return all(ast.unparse(call.func) in HARMLESS or _is_text_method(call.func) for call in calls)


def _is_text_method(function):
    """Methods of literals and constants: "a b".split(), SEPARATOR.join(...), TABLE.items()."""
    return isinstance(function, ast.Attribute) and function.attr in {
        "split", "join", "format", "items", "keys", "values", "strip", "splitlines", "lower", "upper", "encode", "union",
    }  # fmt: skip


def _is_effect(node):
    if isinstance(node, DEFINITIONS):
        return False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False  # docstring, ellipsis
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return node.value is not None and not _is_constant_expression(node.value)
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return test not in ("TYPE_CHECKING", "__name__ == '__main__'")
    return True


def effects(source):
    return [ast.unparse(node).splitlines()[0] for node in ast.parse(source).body if _is_effect(node)]


def test_modules_only_define(package_root):
    found = {}
    for path in sorted(package_root.rglob("*.py")):
        if lines := effects(path.read_text("utf-8")):
            found[str(path.relative_to(package_root))] = lines
    assert found == {}


@pytest.mark.parametrize(
    "source",
    ["import os\nos.makedirs('x')", "X = probe()", "for i in range(3): pass", "if torch.cuda.is_available(): X = 1"],
)
def test_effects_are_seen(source):
    assert len(effects(source)) == 1


@pytest.mark.parametrize(
    "source",
    ['"""Doc."""\nimport os\nX = 3 * 4', "T = TypeVar('T')", "if TYPE_CHECKING:\n    import torch", "def f(): g()"],
)
def test_definitions_are_not_effects(source):
    assert effects(source) == []

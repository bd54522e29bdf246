"""Private parts of other people's packages are used in one file per framework, whose assumptions have tests."""

import ast
from pathlib import Path

import pytest

ALLOWED = {
    "common/torch_internals.py": "tests/common/test_torch_internals.py",
    "training/lightning_internals.py": "tests/training/test_lightning_internals.py",
    "engine/hf_folder/modeling_nanochat_lit.py": "tests/engine/test_hf_export.py",
    "serve/server.py": "tests/serve/test_server.py",
}
"""Files that may, and where their assumptions are tested: torch, Lightning, transformers, LitServe."""
STANDARD = {"_exit", "_replace", "_asdict", "_fields", "_name"}
"""Of Python's own library: os, named tuples, ctypes."""
FRAMEWORKS = {"torch", "lightning", "transformers", "litserve", "gradio", "uvicorn", "starlette", "fastapi", "datasets"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(trees):
    """Private names that this package defines anywhere."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "object.__setattr__":
                names.add(ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else "")
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                names.add(node.attr)
    return names


def foreign_parts(tree, own):
    """Lines that name a private part which is not ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own | STANDARD:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            paths = [*modules, *(alias.name for alias in node.names)]
            is_foreign = any(path.partition(".")[0] in FRAMEWORKS for path in paths)
            if is_foreign and any(is_private(part) for path in paths for part in path.split(".")):
                yield node.lineno, ast.unparse(node)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("getattr", "setattr", "hasattr")
            and len(node.args) > 1
        ):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in own:
                yield node.lineno, ast.unparse(node)


def test_private_parts_have_their_files(package_root):
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(package_root.rglob("*.py"))}
    own = own_names(trees.values())
    found = {str(path.relative_to(package_root)): list(foreign_parts(tree, own)) for path, tree in trees.items()}
    assert {path: lines for path, lines in found.items() if lines and path not in ALLOWED} == {}
    for path in list(ALLOWED)[:2]:
        assert found[path], f"{path} has no private part any more"
    for path in ALLOWED.values():
        assert (Path(__file__).parents[2] / path).is_file()


@pytest.mark.parametrize(
    "source",
    [
        "trainer._signal_connector.stop()",
        "from lightning.fabric.strategies.strategy import _BackwardSyncControl",
        "import torch._inductor.config as inductor",
        "torch.ops.aten._scaled_mm(a, b)",
        "getattr(torch, '_fused_sdp_choice', None)",
    ],
)
def test_private_parts_are_seen(source):
    assert len(list(foreign_parts(ast.parse(source), {"_own"}))) == 1

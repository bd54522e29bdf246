"""The package's public names: listed once, sorted, all there."""

import inspect
import re
import subprocess
import sys

import pytest

import nanochat_lit

FROM_THE_FIRST_DAY = {"GPT", "GPTConfig", "MuonAdamW", "Tokenizer", "Engine", "load_export", "param_groups"}


def test_all_lists_exactly_the_public_names():
    assert {*nanochat_lit._HOMES, "__version__"} == set(nanochat_lit.__all__)
    assert len(set(nanochat_lit.__all__)) == len(nanochat_lit.__all__)
    assert dir(nanochat_lit) == sorted(nanochat_lit.__all__)
    assert set(nanochat_lit.__all__) >= FROM_THE_FIRST_DAY


def test_type_checkers_see_the_same_names(package_root):
    """The `if TYPE_CHECKING` block names the same homes as the table that is used at run time."""
    import ast

    tree = ast.parse((package_root / "__init__.py").read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == nanochat_lit._HOMES


@pytest.mark.parametrize("name", sorted(nanochat_lit._HOMES))
def test_each_name_resolves(name):
    assert getattr(nanochat_lit, name) is not None


def test_star_import_binds_all_in_a_fresh_process():
    code = "from nanochat_lit import *; import nanochat_lit; print(sorted(set(nanochat_lit.__all__) - set(globals())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = nanochat_lit.nonsense


def test_each_name_is_documented(repository_root):
    """In the table of the API page and its reference, and by a docstring where it can have one."""
    chapter, reference = (repository_root / "recipes" / "docs" / "api.md").read_text("utf-8").split("\n## Notebooks")
    table = "\n".join(line for line in chapter.splitlines() if line.startswith("|"))
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(nanochat_lit._HOMES)
    undocumented = set(nanochat_lit._HOMES) - set(re.findall(r"^::: nanochat_lit\.(\w+)$", reference, re.MULTILINE))
    assert undocumented == {"Conversation"}, "only a type alias has no entry"
    for name in nanochat_lit._HOMES:
        value = getattr(nanochat_lit, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name

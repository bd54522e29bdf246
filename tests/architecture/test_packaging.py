"""What an installed copy holds: every subpackage, and the recipes that lie beside the package in the repository."""

from pathlib import Path

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.recipes import find_recipe


@pytest.fixture(scope="module")
def setuptools_table(repository_root):
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    return tomllib.loads((repository_root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def test_every_package_is_listed(setuptools_table, repository_root):
    folders = {path.parent for path in (repository_root / "nanochat_lit").rglob("*.py")}
    found = {".".join(folder.relative_to(repository_root).parts) for folder in folders}
    assert set(setuptools_table["packages"]) == found | {"nanochat_lit.configs.trainer", "nanochat_lit.recipes"}
    assert setuptools_table["packages"] == sorted(setuptools_table["packages"])


def test_recipes_are_installed_inside_the_package(setuptools_table):
    folders = {"nanochat_lit.configs.trainer": "configs/trainer", "nanochat_lit.recipes": "recipes"}
    assert setuptools_table["package-dir"] == folders
    assert all("*.yaml" in setuptools_table["package-data"][name] for name in folders)
    assert "ablations/*.yaml" in setuptools_table["package-data"]["nanochat_lit.recipes"]


def test_recipes_are_found_from_anywhere(tmp_path, monkeypatch):
    """From the installed copy if there is one, else from the checkout; a file of that name where one stands wins."""
    monkeypatch.chdir(tmp_path)
    found = Path(find_recipe("recipes/cpu_text.yaml"))
    assert found.is_file()
    assert found.parent.name == "recipes"
    assert find_recipe("--config=recipes/cpu_text.yaml") == f"--config={found}"
    with pytest.raises(
        UserError, match=r"recipe recipes/cpu_txt.yaml does not exist; did you mean 'recipes/cpu_text.yaml'\?"
    ):
        find_recipe("recipes/cpu_txt.yaml")
    fragment = Path(find_recipe("configs/trainer/cpu.yaml"))
    assert fragment.is_file()
    assert fragment.parts[-3:-1] == ("configs", "trainer")
    assert find_recipe("trainer/cpu.yaml") == "trainer/cpu.yaml"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "cpu_text.yaml").write_text("run_dir: mine")
    assert find_recipe("recipes/cpu_text.yaml") == "recipes/cpu_text.yaml"

"""The wheel holds the package, its data and the recipes, nothing else; the source archive makes the same wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def _build(hook: str, source: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(out)], cwd=source, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory, repository_root):
    """A copy of what git tracks, so that building leaves nothing in the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="builds with the build backend of pyproject.toml")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository_root, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("source")
    for name in filter(None, listed.stdout.split("\0")):
        if (repository_root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository_root / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return _build("build_wheel", source, tmp_path_factory.mktemp("dist"))


def test_the_wheel_is_whole(wheel, source):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(source)) for path in (source / "nanochat_lit").rglob("*") if path.is_file()}
    recipes = {f"nanochat_lit/{path.relative_to(source)}" for path in (source / "recipes").rglob("*.yaml")}
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    configs = {f"nanochat_lit/configs/trainer/{path.name}" for path in (source / "configs" / "trainer").glob("*.yaml")}
    assert names - info == package | recipes | configs
    assert "nanochat_lit/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in info)


def test_its_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(path).decode()
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert f"Classifier: Programming Language :: Python :: {version}\n" in text
    for extra in ("serve", "hf", "tiktoken", "test"):
        assert f"Provides-Extra: {extra}\n" in text
    assert "Requires-Python: >=3.10\n" in text
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not any(name in line for line in required for name in ("transformers", "tiktoken", "gradio", "litserve"))
    (scripts,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "nanochat-lit = nanochat_lit.cli:main" in archive.read(scripts).decode()


def test_the_source_archive_makes_the_same_wheel(wheel, source, unpack, tmp_path):
    unpack(_build("build_sdist", source, tmp_path), tmp_path)
    (unpacked,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    again = _build("build_wheel", unpacked, tmp_path / "dist")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())

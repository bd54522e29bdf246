"""Every notebook runs from top to bottom, offline, and is kept with its outputs: plots, no errors, modest size."""

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
QUICK = ("01", "02")
"""The others take up to half a minute each on one core."""
MAX_BYTES = 150_000


def cases():
    for path in NOTEBOOKS:
        yield pytest.param(path, id=path.stem, marks=[] if path.stem.startswith(QUICK) else [pytest.mark.slow])


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_they_are_all_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 9)]


@pytest.mark.parametrize("path", list(cases()))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_runs(path, tmp_path, monkeypatch):
    """In a kernel of its own, as a reader runs it."""
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "error" not in kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert all(output.output_type in ("stream", "display_data", "execute_result") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs), "no plot is kept"
    text = path.read_text("utf-8")
    assert not any(place in text for place in ("/home/", "/root/", "/tmp/", "site-packages")), "paths of a machine"
    titles = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert titles[0].source.startswith(f"# {int(path.stem[:2])}.")
    assert "pip install" in titles[0].source
    assert len(titles) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_that_it_imports_is_there(path):
    """The slow ones are not run by default: at least their imports and their syntax are looked at."""
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanochat_lit"):
                exec(ast.unparse(node), {})

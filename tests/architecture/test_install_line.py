"""The first notebook alone, as in Colab: an environment without this library, an empty folder, and the install line."""

import os
import subprocess
import sys

import nbformat
import pytest

INSTALL_LINE = "# %pip install -q git+https://github.com/OWNER/nanochat-lit\n"

RUN = """
import nbclient, nbformat
notebook = nbformat.read("notebook.ipynb", as_version=4)
nbclient.NotebookClient(notebook, timeout=900).execute()
nbformat.write(notebook, "executed.ipynb")
"""


@pytest.mark.slow
def test_the_first_notebook_installs_what_it_needs(tmp_path, repository_root):
    """With the checkout's own address in the line; this needs git and a package index, as Colab has them."""
    if not (repository_root / ".git").exists():
        pytest.skip("pip installs by git+ only from a git checkout")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, env=environment)
    subprocess.run([python, "-m", "pip", "install", "-q", "nbclient", "ipykernel"], check=True, env=environment)
    missing = subprocess.run([python, "-c", "import nanochat_lit"], cwd=tmp_path, env=environment, capture_output=True)
    assert missing.returncode == 1, "the environment is not what the test is about"

    notebook = nbformat.read(repository_root / "notebooks" / "01_tokenizer.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith(INSTALL_LINE)
    first.source = first.source.replace(INSTALL_LINE, f"%pip install -q git+{repository_root.as_uri()}\n")
    folder = tmp_path / "empty"
    folder.mkdir()
    nbformat.write(notebook, folder / "notebook.ipynb")
    subprocess.run([python, "-c", RUN], cwd=folder, env=environment, check=True, timeout=1200)

    executed = nbformat.read(folder / "executed.ipynb", as_version=4)
    kinds = [output.output_type for cell in executed.cells for output in cell.get("outputs", [])]
    assert "error" not in kinds
    assert "display_data" in kinds

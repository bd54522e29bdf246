"""Environments for the programs of others."""

import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

INSTALL_S = 1800


def install(command, folder):
    """Runs an installation; if a package is not available, the test is skipped with the installer's error."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{' '.join(words)}: {error}")
    if done.returncode != 0:
        pytest.skip(f"{' '.join(words)}: {(done.stderr.strip() or done.stdout.strip())[-300:]}")


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory) -> Callable[..., Path]:
    """make_environment(NAME, PACKAGES): the folder of programs of a new environment.

    The packages themselves are installed as wheels; small dependencies that have none are built.
    With is_on_top the packages of this environment can be imported there, so that they are not installed again.
    """

    def make(name, packages, unwanted=(), is_on_top=False):
        folder = tmp_path_factory.mktemp(name)
        install([sys.executable, "-m", "venv", "env"], folder)
        programs = folder / "env" / "bin"
        if is_on_top:
            (site,) = (folder / "env" / "lib").glob("python*/site-packages")
            (site / "below.pth").write_text(sysconfig.get_path("purelib"))
        pip = [programs / "python", "-m", "pip"]
        names = ",".join(re.split(r"[\[=<]", package)[0] for package in packages)
        install([*pip, "install", "-q", "--prefer-binary", "--only-binary", names, *packages], folder)
        if unwanted:
            install([*pip, "uninstall", "-q", "-y", *unwanted], folder)
        return programs

    return make


@pytest.fixture(scope="session")
def install_here() -> Callable[..., None]:
    """install_here(COMMAND, FOLDER): other ways of installing."""
    return install

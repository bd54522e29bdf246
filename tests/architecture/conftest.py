"""Where the sources are."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def package_root() -> Path:
    """Folder of the package under test: the installed one when it is installed, else the checkout's."""
    spec = importlib.util.find_spec("nanochat_lit")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def repository_root() -> Path:
    return Path(__file__).parents[2]

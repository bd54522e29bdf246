"""Fixtures for every test: seeds fixed per test, and `gpu` tests skipped where there is no CUDA device."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what a library under test may use
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_dtype_override(monkeypatch):
    """NANOCHAT_DTYPE in the developer's shell must not decide what the tests compute in."""
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers and real data, kept beside the checkout by those who develop the library."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.exists():
        pytest.skip("reference data is not beside this checkout")
    return folder

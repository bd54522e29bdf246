"""Fixtures for every test: seeds fixed per test, and `gpu` tests skipped where there is no CUDA device."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.tokenizer import Tokenizer

SMALL_TEXTS = [
    "the cat sat on the mat. 12 + 34 = 46. naïve café ▁ 日本語 🙂",
    "hello world, what is 3 times 4? it is 12.",
] * 20


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


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """320 tokens, for the models of `random_model`; folders that need another have their own."""
    return Tokenizer.train(SMALL_TEXTS, vocab_size=320)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., GPT]:
    """A model whose every parameter is random, so that nothing (zero projections, no smear) hides a mistake."""

    def make(seed: int = 0, std: float = 0.15, **fields: object) -> GPT:
        defaults = {
            "sequence_len": 64,
            "vocab_size": 320,
            "n_layer": 2,
            "n_head": 2,
            "n_kv_head": 2,
            "n_embd": 32,
            "window_pattern": "SL",
        }
        model = GPT(GPTConfig(**{**defaults, **fields}))
        generator = torch.Generator().manual_seed(seed)
        model.init_weights(generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
        return model.eval()

    return make

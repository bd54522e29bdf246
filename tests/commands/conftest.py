from collections.abc import Callable

import pytest
import torch

from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat. 12 + 34 = 46. naïve café ▁ 日本語 🙂",
    "hello world, what is 3 times 4? it is 12.",
] * 20


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=320)


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

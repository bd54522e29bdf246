"""A small text corpus, made by rule, and a tokenizer trained on it."""

import random
from collections.abc import Callable

import pytest

from nanochat_lit.tokenizer import Tokenizer

TEXT = """the a small old red boat river walks over under bridge and then sings quietly until morning comes
back with seven stars mountain letter answer question garden window ünïcode naïve café 東京 привет"""
WORDS = TEXT.split()


def _documents(num_documents: int, seed: int = 0) -> list[str]:
    """Sentences of known words, with digits, quotes and blank lines."""
    rng = random.Random(seed)
    result = []
    for _ in range(num_documents):
        sentences = []
        for _ in range(rng.randint(1, 12)):
            words = rng.choices(WORDS, k=rng.randint(2, 12))
            sentences.append(
                " ".join(words).capitalize() + rng.choice([".", "?", "!\n", ".\n\n", f", {rng.randint(0, 999)}."])
            )
        result.append(" ".join(sentences))
    return result


@pytest.fixture(scope="session")
def documents() -> Callable[..., list[str]]:
    return _documents


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(_documents(400), vocab_size=500)

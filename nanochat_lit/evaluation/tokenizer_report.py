"""Compression of texts by tokenizers in bytes per token (higher is better)."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from nanochat_lit.common.errors import UserError, missing_package
from nanochat_lit.evaluation.score_report import aligned

EncodeBatch = Callable[[Sequence[str]], Sequence[Sequence[int]]]

_BASE = "https://openaipublic.blob.core.windows.net/"
OPENAI_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gpt2": ("gpt2", ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json")),
    "gpt4": ("cl100k_base", ("encodings/cl100k_base.tiktoken",)),
    "gpt4o": ("o200k_base", ("encodings/o200k_base.tiktoken",)),
}
"""tiktoken's encoding name and files, by name."""


def domain_texts() -> dict[str, str]:
    """Return built-in texts by domain, to compare tokenizers without other data."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("domain_texts.yaml").read_text("utf-8"))


def openai_encoder(name: str) -> tuple[int, EncodeBatch]:
    """Return the vocabulary size and batch encoder of a tokenizer in OPENAI_FILES; UserError without its files."""
    encoding, files = OPENAI_FILES[name]
    try:
        tiktoken = import_module("tiktoken")  # not a dependency, so type checkers may not find it
    except ImportError:
        raise missing_package(f"the tokenizer {name}", "tiktoken", "tiktoken") from None
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default)
    # tiktoken names a cached file by the SHA-1 of its URL, and would download a missing one.
    missing = [file for file in files if not (cache / hashlib.sha1(f"{_BASE}{file}".encode()).hexdigest()).is_file()]  # noqa: S324
    if missing:
        raise UserError(
            f"its files are not in {cache}; `python -c \"import tiktoken; tiktoken.get_encoding('{encoding}')\"` "
            "fetches them"
        )
    found = tiktoken.get_encoding(encoding)
    return found.n_vocab, found.encode_ordinary_batch


@dataclass(frozen=True, kw_only=True)
class Compression:
    """One tokenizer on one set of texts."""

    tokenizer: str
    """Name of the tokenizer."""
    vocab_size: int
    """Vocabulary size."""
    texts: str
    """Name of the texts."""
    num_bytes: int
    """Length of the texts in UTF-8, bytes."""
    num_tokens: int
    """Number of tokens of the texts."""

    @property
    def bytes_per_token(self) -> float:
        """Mean number of bytes per token; 0 without text."""
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0


def measure_compression(
    tokenizers: Mapping[str, tuple[int, EncodeBatch]], texts: Mapping[str, Sequence[str]]
) -> list[Compression]:
    """Measure bytes per token of every tokenizer on every set of texts, ordered by texts, then by tokenizer."""
    return [
        Compression(
            tokenizer=name,
            vocab_size=vocab_size,
            texts=title,
            num_bytes=sum(len(document.encode("utf-8")) for document in documents),
            num_tokens=sum(len(token_ids) for token_ids in encode_batch(documents)),
        )
        for title, documents in texts.items()
        for name, (vocab_size, encode_batch) in tokenizers.items()
    ]


def format_compression(results: Sequence[Compression]) -> str:
    """Format a text table with a line per tokenizer and set of texts, relative to the first tokenizer."""
    names = ("texts", "tokenizer", "vocabulary", "bytes", "tokens", "bytes/token", "against first")
    lines: list[tuple[str, ...]] = [names]
    first: dict[str, Compression] = {}
    for result in results:
        base = first.setdefault(result.texts, result)
        ratio = result.bytes_per_token / base.bytes_per_token - 1 if base.bytes_per_token else 0.0
        counts = (str(result.vocab_size), str(result.num_bytes), str(result.num_tokens))
        compared = "" if result is base else f"{ratio:+.1%}"
        lines.append((result.texts, result.tokenizer, *counts, f"{result.bytes_per_token:.3f}", compared))
    return aligned(lines)

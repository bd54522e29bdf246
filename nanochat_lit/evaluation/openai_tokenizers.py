"""Tokenizers of OpenAI models for comparison, from tiktoken without network access."""

import hashlib
import os
import tempfile
from importlib import import_module
from pathlib import Path

from nanochat_lit.common.errors import UserError, missing_package
from nanochat_lit.evaluation.tokenizer_report import EncodeBatch

_BASE = "https://openaipublic.blob.core.windows.net/"
OPENAI_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gpt2": ("gpt2", ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json")),
    "gpt4": ("cl100k_base", ("encodings/cl100k_base.tiktoken",)),
    "gpt4o": ("o200k_base", ("encodings/o200k_base.tiktoken",)),
}
"""tiktoken's encoding name and files, by name."""


def openai_encoder(name: str) -> tuple[int, EncodeBatch]:
    """Return the vocabulary size and batch encoder of a tokenizer in OPENAI_FILES.

    Args:
        name: A key of OPENAI_FILES.

    Raises:
        UserError: If tiktoken or the files are missing; nothing is downloaded.
    """
    encoding, files = OPENAI_FILES[name]
    try:
        tiktoken = import_module("tiktoken")  # not a dependency, so type checkers may not find it
    except ImportError:
        raise missing_package(f"the tokenizer {name}", "tiktoken", "tiktoken") from None
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default)
    # tiktoken names a cached file by the SHA-1 of its URL, and would download a missing one.
    missing = [file for file in files if not (cache / _cached_name(file)).is_file()]
    if missing:
        raise UserError(
            f"its files are not in {cache}; `python -c \"import tiktoken; tiktoken.get_encoding('{encoding}')\"` "
            "fetches them"
        )
    found = tiktoken.get_encoding(encoding)
    return found.n_vocab, found.encode_ordinary_batch


def _cached_name(file: str) -> str:
    return hashlib.sha1(f"{_BASE}{file}".encode()).hexdigest()  # noqa: S324

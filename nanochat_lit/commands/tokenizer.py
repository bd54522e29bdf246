"""`nanochat-lit tokenizer`: train a tokenizer, and compare its compression with others."""

import json as json_format
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource, Split, check_source
from nanochat_lit.evaluation.tokenizer_report import (
    OPENAI_FILES,
    EncodeBatch,
    domain_texts,
    format_compression,
    measure_compression,
    openai_encoder,
)
from nanochat_lit.tokenizer import Tokenizer

_HELD_OUT_DOCUMENTS = 500


def train(
    data: str | list[str],
    out: str,
    vocab_size: int | Literal["auto"] = "auto",
    depth: int | None = None,
    max_chars: int = 2_000_000_000,
    doc_cap: int = 10_000,
    split_scripts: bool | Literal["auto"] = "auto",
) -> None:
    """Train a tokenizer on the training split of text files.

    vocab_size auto selects 4096 up to depth 2, 8192 up to depth 7, 16384 up to depth 11, and 32768 otherwise. It is
    then halved until the text has 1000 characters per token; the minimum is 512.

    Args:
        data: File or folder of .txt, .jsonl or .parquet texts, or a list of them.
        out: Folder for tokenizer.model and tokenizer.json.
        vocab_size: Number of tokens, or auto.
        depth: Number of layers of the model, used by vocab_size auto and split_scripts auto.
        max_chars: Number of characters to train on, from the start of the files; memory is 4 bytes each. Scripts
            without spaces need 85 bytes each and are capped at 50 million.
        doc_cap: Maximum number of characters per document; the rest is ignored.
        split_scripts: Split tokens at changes of script, treating punctuation as a script; auto enables it up to depth
            7.
    """
    sources = [check_source(one) for one in ([data] if isinstance(data, str) else data)]
    if not sources:
        raise UserError("data is an empty list; give at least one file or folder")
    num_chars = 0
    num_documents = 0

    def texts() -> Iterator[str]:
        nonlocal num_chars, num_documents
        for source in sources:
            for text in source.documents(_train_split(source)):
                num_documents += 1
                num_chars += min(len(text), doc_cap)
                yield text

    start = time.perf_counter()
    options = {"max_chars": max_chars, "doc_cap": doc_cap, "depth": depth, "split_scripts": split_scripts}
    tokenizer = Tokenizer.train(texts(), vocab_size, **options)
    duration_s = time.perf_counter() - start
    tokenizer.save(out)
    if vocab_size == "auto":
        print(
            f"vocabulary {tokenizer.vocab_size}, chosen for depth {depth or 'unknown'} and "
            f"{min(num_chars, max_chars):,} characters (by depth at most 4096, 8192, 16384 or 32768, "
            "and 1000 characters per token)"
        )
    print(f"trained {tokenizer.vocab_size} tokens on {num_documents:,} documents in {duration_s:.1f} s")
    for source in sources:
        split: Split = "all" if _train_split(source) == "all" else "val"
        held_out = list(islice(source.documents(split), _HELD_OUT_DOCUMENTS))
        results = measure_compression({"new": (tokenizer.vocab_size, tokenizer.encode_batch)}, {"text": held_out})
        where = "held-out documents" if split == "val" else "the text it was trained on"
        print(f"{results[0].bytes_per_token:.3f} bytes per token on {where} of {source.path}{source.left_out()}")
    print(f"written to {out}")


def evaluate(
    tokenizer: str,
    data: str | list[str] | None = None,
    against: list[str] | None = None,
    max_docs: int = 1000,
    domains: bool = True,
    json: bool = False,
) -> None:
    """Compare bytes per token of several tokenizers on several kinds of text.

    Evaluates short built-in texts (news, code, math and seven other languages) and the given data.

    Args:
        tokenizer: Folder of the tokenizer, or of an export.
        data: File or folder of .txt, .jsonl or .parquet texts, or a list of them; each is reported separately.
        against: Tokenizers to compare with: folders, or gpt2, gpt4 and gpt4o, which require tiktoken and its cached
            files. The default is gpt2 and gpt4 if available.
        max_docs: Number of documents per data entry.
        domains: Also evaluate the built-in texts.
        json: Print one line of JSON instead of the table.
    """
    if max_docs < 1:
        raise UserError(f"max_docs is {max_docs}; it must be at least 1")
    if data is None and not domains:
        raise UserError("no text to evaluate; give --data or --domains true")
    encoders: dict[str, tuple[int, EncodeBatch]] = {}
    for name in [tokenizer, *(against or [])]:
        encoders[str(name)] = _encoder(name)
    notes = [_add_openai(name, encoders) for name in ("gpt2", "gpt4")]
    texts: dict[str, list[str]] = {}
    for path in [data] if isinstance(data, str) else data or []:
        source = FileSource(path)
        texts[path] = list(islice(source.documents("val" if source.split.val else "all"), max_docs))
    if domains:
        texts |= {name: [text] for name, text in domain_texts().items()}
    results = measure_compression(encoders, texts)
    if json:
        print(json_format.dumps([{**vars(result), "bytes_per_token": result.bytes_per_token} for result in results]))
        return
    print(format_compression(results))
    print("".join(notes), end="")


def _add_openai(name: str, encoders: dict[str, tuple[int, EncodeBatch]]) -> str:
    """Add a tokenizer if available; return a note if not."""
    try:
        encoders.setdefault(name, openai_encoder(name))
    except UserError as error:
        return f"({name} left out: {error})\n"
    return ""


def _encoder(name: str) -> tuple[int, EncodeBatch]:
    """Return vocabulary size and encoder of a tokenizer given by folder or name; folders take precedence."""
    if name in OPENAI_FILES and not Path(name).is_dir():
        return openai_encoder(name)
    loaded = Tokenizer.load(name)
    return loaded.vocab_size, loaded.encode_batch


def _train_split(source: FileSource) -> Split:
    """Return 'train', or 'all' if the text is too short to hold out a part."""
    return "train" if source.split.val or source.num_rows("all") > 1 else "all"

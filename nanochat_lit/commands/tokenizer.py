"""`nanochat-lit tokenizer`: train a vocabulary, and compare its compression with others."""

import hashlib
import json as json_format
import os
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource, Split, check_source
from nanochat_lit.evaluation.tokenizer_report import EncodeBatch, format_compression, measure_compression
from nanochat_lit.tokenizer import Tokenizer

_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_HELD_OUT_DOCUMENTS = 500


def train(
    path: str | list[str],
    out: str,
    vocab_size: int | Literal["auto"] = "auto",
    depth: int | None = None,
    max_chars: int = 2_000_000_000,
    doc_cap: int = 10_000,
) -> None:
    """Train a tokenizer on the training split of text files.

    The automatic vocabulary: 4096 up to depth 2, 8192 up to depth 7, 16384 up to depth 11, 32768 from depth 12 up or
    without a depth; halved until there are 1000 characters of text for every token, but at least 512.

    Args:
        path: File or folder of .txt, .jsonl or .parquet texts, or a list of them.
        out: Folder for tokenizer.model and tokenizer.json.
        vocab_size: Number of tokens, or auto.
        depth: Layers of the model that the automatic vocabulary is for.
        max_chars: Characters to learn from; all of them are held in memory.
        doc_cap: Characters of one document to learn from; the rest of it is left out.
    """
    sources = [check_source(one) for one in ([path] if isinstance(path, str) else path)]
    if not sources:
        raise UserError("path is an empty list; give at least one file or folder")
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
    tokenizer = Tokenizer.train(texts(), vocab_size, max_chars=max_chars, doc_cap=doc_cap, depth=depth)
    duration_s = time.perf_counter() - start
    tokenizer.save(out)
    if vocab_size == "auto":
        print(
            f"vocabulary {tokenizer.vocab_size}, chosen for depth {depth or 'unknown'} and "
            f"{min(num_chars, max_chars):,} characters (by depth at most 4096, 8192, 16384 or 32768, "
            "and 1000 characters a token)"
        )
    print(f"trained {tokenizer.vocab_size} tokens on {num_documents:,} documents in {duration_s:.1f} s")
    for source in sources:
        split: Split = "all" if _train_split(source) == "all" else "val"
        held_out = list(islice(source.documents(split), _HELD_OUT_DOCUMENTS))
        results = measure_compression({"new": (tokenizer.vocab_size, tokenizer.encode_batch)}, {"text": held_out})
        where = "held-out documents" if split == "val" else "the text it was trained on"
        print(f"{results[0].bytes_per_token:.3f} bytes per token on {where} of {source.path}")
    print(f"written to {out}")


def evaluate(
    tokenizer: str,
    data: str | list[str],
    against: list[str] | None = None,
    max_docs: int = 1000,
    json: bool = False,
) -> None:
    """Compare how many bytes of given texts a token stands for, between tokenizers.

    Args:
        tokenizer: Folder of the tokenizer, or of an export.
        data: File or folder of .txt, .jsonl or .parquet texts, or a list of them; each gets lines of its own.
        against: Folders of other tokenizers. GPT-2's is added when tiktoken and its files are on this machine.
        max_docs: Documents of each of the texts.
        json: Print one line of JSON instead of the table.
    """
    if max_docs < 1:
        raise UserError(f"max_docs is {max_docs}, but must be at least 1")
    encoders: dict[str, tuple[int, EncodeBatch]] = {}
    for folder in [tokenizer, *(against or [])]:
        loaded = Tokenizer.load(folder)
        encoders[str(folder)] = (loaded.vocab_size, loaded.encode_batch)
    note = _add_gpt2(encoders)
    texts: dict[str, list[str]] = {}
    for path in [data] if isinstance(data, str) else data:
        source = FileSource(path)
        texts[path] = list(islice(source.documents("val" if len(source.files) > 1 else "all"), max_docs))
    results = measure_compression(encoders, texts)
    if json:
        print(json_format.dumps([{**vars(result), "bytes_per_token": result.bytes_per_token} for result in results]))
        return
    print(format_compression(results))
    if note:
        print(note)


def _train_split(source: FileSource) -> Split:
    """'train', or everything when there is too little to hold a part out."""
    return "train" if len(source.files) > 1 or source.num_rows("all") > 1 else "all"


def _add_gpt2(encoders: dict[str, tuple[int, EncodeBatch]]) -> str:
    """Add GPT-2's tokenizer without using the network; a line that says why not, or nothing."""
    try:
        tiktoken = import_module("tiktoken")  # not one of our dependencies, so type checkers may not find it
    except ImportError:
        return "(GPT-2 left out: tiktoken is not installed)"
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default)
    # tiktoken names a cached file by the sha1 of its address, and would download one that is not there.
    names = [hashlib.sha1(f"{_GPT2_URL}{name}".encode()).hexdigest() for name in ("vocab.bpe", "encoder.json")]  # noqa: S324
    if not all((cache / name).is_file() for name in names):
        return f"(GPT-2 left out: its files are not in {cache})"
    gpt2 = tiktoken.get_encoding("gpt2")
    encoders["gpt2"] = (gpt2.n_vocab, gpt2.encode_ordinary_batch)
    return ""

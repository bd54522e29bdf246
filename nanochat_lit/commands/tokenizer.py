"""`nanochat-lit tokenizer`: train a vocabulary, and compare its compression with others."""

import json as json_format
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource, Split, check_source
from nanochat_lit.evaluation.domain_texts import DOMAINS
from nanochat_lit.evaluation.openai_tokenizers import OPENAI_FILES, openai_encoder
from nanochat_lit.evaluation.tokenizer_report import EncodeBatch, format_compression, measure_compression
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

    The automatic vocabulary: 4096 up to depth 2, 8192 up to depth 7, 16384 up to depth 11, 32768 from depth 12 up or
    without a depth; halved until there are 1000 characters of text for every token, but at least 512.

    Args:
        data: File or folder of .txt, .jsonl or .parquet texts, or a list of them.
        out: Folder for tokenizer.model and tokenizer.json.
        vocab_size: Number of tokens, or auto.
        depth: Layers of the model that vocabulary and splitting are for, where they are auto.
        max_chars: Characters to learn from, the first of the files; all of them are held in memory, 4 bytes each. Of
            scripts without spaces, which cost 85, 50 million are used.
        doc_cap: Characters of one document to learn from; the rest of it is left out.
        split_scripts: No token goes beyond a change of script, where punctuation is a script of its own; auto does so up to
            depth 7.
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
            "and 1000 characters a token)"
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
    """Compare how many bytes of text a token stands for, between tokenizers and kinds of text.

    The kinds are news, code, math and seven other languages, a short text of each, and the texts that are given.

    Args:
        tokenizer: Folder of the tokenizer, or of an export.
        data: File or folder of .txt, .jsonl or .parquet texts, or a list of them; each gets lines of its own.
        against: Other tokenizers: folders, or gpt2, gpt4 and gpt4o, which need tiktoken and its files on this machine.
            gpt2 and gpt4 are added without being asked for where they can be had.
        max_docs: Documents of each of the given texts.
        domains: Measure on the short texts, too.
        json: Print one line of JSON instead of the table.
    """
    if max_docs < 1:
        raise UserError(f"max_docs is {max_docs}, but must be at least 1")
    if data is None and not domains:
        raise UserError("there is nothing to measure on; give data, or domains")
    encoders: dict[str, tuple[int, EncodeBatch]] = {}
    for name in [tokenizer, *(against or [])]:
        encoders[str(name)] = _encoder(name)
    notes = [_add_openai(name, encoders) for name in ("gpt2", "gpt4")]
    texts: dict[str, list[str]] = {}
    for path in [data] if isinstance(data, str) else data or []:
        source = FileSource(path)
        texts[path] = list(islice(source.documents("val" if source.split.val else "all"), max_docs))
    if domains:
        texts |= {name: [text] for name, text in DOMAINS.items()}
    results = measure_compression(encoders, texts)
    if json:
        print(json_format.dumps([{**vars(result), "bytes_per_token": result.bytes_per_token} for result in results]))
        return
    print(format_compression(results))
    print("".join(notes), end="")


def _add_openai(name: str, encoders: dict[str, tuple[int, EncodeBatch]]) -> str:
    """Add a tokenizer if it can be had, else say why not."""
    try:
        encoders.setdefault(name, openai_encoder(name))
    except UserError as error:
        return f"({name} left out: {error})\n"
    return ""


def _encoder(name: str) -> tuple[int, EncodeBatch]:
    """Vocabulary size and encoder of a tokenizer given by folder or name; a folder goes first."""
    if name in OPENAI_FILES and not Path(name).is_dir():
        return openai_encoder(name)
    loaded = Tokenizer.load(name)
    return loaded.vocab_size, loaded.encode_batch


def _train_split(source: FileSource) -> Split:
    """'train', or everything when there is too little to hold a part out."""
    return "train" if source.split.val or source.num_rows("all") > 1 else "all"

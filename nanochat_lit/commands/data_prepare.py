"""`nanochat-lit data prepare`: tokenize text into shards ahead of training."""

import os
import time
from pathlib import Path

from nanochat_lit.data.prepared import prepare as prepare_shards
from nanochat_lit.data.prepared_file import Header
from nanochat_lit.data.shards import check_source
from nanochat_lit.tokenizer import Tokenizer


def prepare(data: str, tokenizer: str, out: str, num_threads: int | None = None) -> None:
    """Write text as shards of token ids, so that training runs need not tokenize it.

    Use the folder as --data.path; training sees the same sequences as with the text. An interrupted run resumes at the
    first missing shard. A token takes 2 bytes, or 4 if the vocabulary is larger than 65,536.

    Args:
        data: File or folder of .txt, .jsonl or .parquet.
        tokenizer: Folder of a tokenizer.
        out: Folder to write into.
        num_threads: Tokenizer threads; null is one per core.
    """
    source = check_source(data)
    print(source.summary())
    threads = os.cpu_count() or 1 if num_threads is None else num_threads
    started_s = time.perf_counter()

    def report(path: Path, header: Header, is_new: bool) -> None:
        what = "" if is_new else "  (exists)"
        print(f"{header.num_rows:>12,} documents {header.num_tokens:>15,} tokens  {path}{what}", flush=True)

    headers = prepare_shards(source, Tokenizer.load(tokenizer), Path(out), threads, report)
    num_tokens = sum(header.num_tokens for header in headers)
    print(f"{num_tokens:,} tokens in {len(headers)} shards, {time.perf_counter() - started_s:.1f} s")

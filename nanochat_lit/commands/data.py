"""`nanochat-lit data generate`, `download`, `info` and `prepare`."""

import json as json_format
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.hub_files import DCLM, ClimbMix, FineWebEdu, HubFiles
from nanochat_lit.data.prepared import Header
from nanochat_lit.data.prepared import prepare as prepare_shards
from nanochat_lit.data.shards import FileSource, check_source
from nanochat_lit.data.statistics import CorpusStatistics, corpus_statistics
from nanochat_lit.report.page import plot_bars
from nanochat_lit.tiny_world.files import write_tiny_world
from nanochat_lit.tokenizer import Tokenizer

SOURCES: dict[str, type[HubFiles]] = {"climbmix": ClimbMix, "fineweb-edu": FineWebEdu, "dclm": DCLM}


_MOST_ROWS = 12


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


def info(
    data: str | list[str],
    tokenizer: str | None = None,
    max_docs: int = 100_000,
    near_docs: int = 10_000,
    plot: str | None = None,
    json: bool = False,
    seed: int = 0,
) -> None:
    """Count documents, characters, tokens, lengths, duplicates, languages and control characters of text files.

    Languages are estimated from the script and, for Latin and Cyrillic, from frequent words. Near duplicates share at
    least 80% of their word 5-grams. They are searched in a sample, so their share is a lower bound.

    Args:
        data: File or folder of texts, or a list of them; shares are per list entry, or per file for a single entry.
        tokenizer: Folder of a tokenizer or an export; adds token counts.
        max_docs: Maximum number of documents; larger corpora are sampled in random blocks.
        near_docs: Number of documents to search for near duplicates.
        plot: Write a plot to this .png or .svg file.
        json: Print one line of JSON instead of the tables.
        seed: Seed of the sample.
    """
    for name, value in (("max_docs", max_docs), ("near_docs", near_docs)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    paths = [data] if isinstance(data, str) else data
    sources = {one: FileSource(one) for one in paths}
    if not sources:
        raise UserError("data is an empty list; give at least one file or folder")
    count = None if tokenizer is None else _token_counter(Tokenizer.load(tokenizer))
    found = corpus_statistics({**sources}, count, max_docs=max_docs, near_docs=near_docs, seed=seed)
    if not found.documents:
        raise UserError(f"{', '.join(paths)}: no documents, {found.passed_over} records skipped")
    if plot is not None:
        plot_bars(plot, {title: dict(rows) for title, rows in _shares(found).items()})
    if json:
        print(json_format.dumps(found.to_json()))
        return
    print("\n".join(_lines(found)))
    for one, source in sources.items():
        if source.left_out():
            print(f"{one}{source.left_out()}")
    if plot is not None:
        print(f"written to {plot}")


def _token_counter(tokenizer: Tokenizer) -> Callable[[Sequence[str]], int]:
    return lambda texts: sum(len(token_ids) + 1 for token_ids in tokenizer.encode_batch(texts, num_threads=2))


def _lines(found: CorpusStatistics) -> list[str]:
    sample = " (a sample of the corpus)" if found.is_sample else ""
    lines = [f"documents            {found.documents:,}{sample}, {found.passed_over:,} records skipped"]
    lines += [f"characters           {found.characters:,} ({found.bytes:,} bytes)"]
    if found.tokens is not None:
        rate = found.bytes / max(1, found.tokens)
        lines += [f"tokens               {found.tokens:,} ({rate:.2f} bytes per token, including BOS)"]
    lines += [
        f"exact duplicates     {found.exact_duplicates:.2%}",
        f"near duplicates      {found.near_duplicates:.2%} of {found.compared:,} documents",
        f"control characters   {found.control_characters:,} in {found.documents_with_control:,} documents",
    ]
    for title, rows in _shares(found).items():
        width = max(len(name) for name, _ in rows)
        lines += ["", title]
        lines += [f"  {name:<{width}}  {share:6.1%}  {'#' * round(40 * share)}".rstrip() for name, share in rows]
    return lines


def _shares(found: CorpusStatistics) -> dict[str, list[tuple[str, float]]]:
    lengths = [(f"{2**power:,} and more", count / found.documents) for power, count in found.lengths.items()]
    chars = {name: counts["characters"] for name, counts in found.sources.items()}
    return {
        "documents by characters": lengths,
        "characters by language (estimated)": _largest(found.languages, found.characters),
        "characters by source": _largest(chars, found.characters),
    }


def _largest(counts: dict[str, int], total: int) -> list[tuple[str, float]]:
    """Return the largest shares and the sum of the others."""
    rows = sorted(((name, count / total) for name, count in counts.items()), key=lambda row: -row[1])
    if len(rows) <= _MOST_ROWS:
        return rows
    return [*rows[:_MOST_ROWS], (f"{len(rows) - _MOST_ROWS} others", sum(share for _, share in rows[_MOST_ROWS:]))]


def generate(
    out: str, num_documents: int = 20_000, num_conversations: int = 20_000, per_category: int = 100, seed: int = 0
) -> None:
    """Write the tiny world: generated English pretraining texts, conversations and a held-out evaluation.

    Writes pretrain/shard_*.parquet (the last shard is validation), sft/train.jsonl, sft/val.jsonl, test.jsonl,
    preferences/*.jsonl (pairs of answers, one of them preferred) and harder/*.jsonl (harder arithmetic for
    reinforcement learning). The splits are disjoint.

    Args:
        out: Folder to write, atomically; replaces an earlier generated corpus there.
        num_documents: Number of training documents.
        num_conversations: Number of training conversations.
        per_category: Questions per category in the held-out evaluation.
        seed: Seed of the generator.
    """
    write_tiny_world(out, num_documents, num_conversations, per_category, seed)
    for path in sorted(path for path in Path(out).rglob("*") if path.suffix in (".parquet", ".jsonl")):
        print(f"{path.stat().st_size:>12,} bytes  {path}")


def download(
    source: str,
    shards: int = 8,
    folder: str | None = None,
    mirror: str | None = None,
    pattern: str | None = None,
    validation: str | None = None,
    revision: str | None = None,
    connections: int = 8,
) -> None:
    """Download shards of a data set in parallel; resumes partial downloads.

    Verifies every file by the checksum from the hub or mirror. Without one, checks its size and, for parquet, opens it.
    Respects HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE. Recipes that name the same source find the files.

    Args:
        source: climbmix, fineweb-edu, dclm, or OWNER/NAME of a data set on the Hugging Face hub.
        shards: Number of training files; the validation file is downloaded in addition.
        folder: Target folder; None is a folder in the user's cache, where recipes look too.
        mirror: URL of a folder with the same files, used instead of the hub; should contain SHA256SUMS.
        pattern: Shell pattern for files of OWNER/NAME; * also matches slashes. None is *.parquet.
        validation: Validation file of OWNER/NAME; None is the last file by name.
        revision: Branch, tag or commit of OWNER/NAME; None is main.
        connections: Number of parallel downloads.
    """
    options: dict[str, Any] = {"num_shards": shards, "folder": folder, "connections": connections}
    chosen = {"pattern": pattern, "validation": validation, "revision": revision}
    more: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if source in SOURCES:
        if more:
            raise UserError(f"{', '.join(more)} cannot be set for {source}; use OWNER/NAME of a data set instead")
        files = SOURCES[source](**options)
    elif "/" in source:
        files = HubFiles(source, **options, **more)
    else:
        raise UserError(f"source is {source!r}; use {', '.join(SOURCES)}, or OWNER/NAME of a data set on the hub")
    files.download(mirror)
    print(f"{shards} training shards and {files.files[-1].path.name} for validation are in {files.path}")

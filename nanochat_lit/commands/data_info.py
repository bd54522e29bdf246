"""`nanochat-lit data info`: statistics of a corpus."""

import json as json_format
from collections.abc import Callable, Sequence

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource
from nanochat_lit.data.statistics import CorpusStatistics, corpus_statistics
from nanochat_lit.evaluation.plots import plot_bars
from nanochat_lit.tokenizer import Tokenizer

_MOST_ROWS = 12


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
    """Return three tables of (name, share)."""
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

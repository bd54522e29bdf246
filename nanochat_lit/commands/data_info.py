"""`nanochat-lit data info`: what a corpus is made of."""

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

    Languages are guessed: by script, and among Latin and Cyrillic ones by frequent words. Near duplicates share four
    fifths of their runs of five words; they are looked for among some documents, so in a sample fewer are found than
    there are.

    Args:
        data: File or folder of texts, or a list of them; shares are by these, or by file if there is one.
        tokenizer: Folder of a tokenizer or an export, to count tokens.
        max_docs: Documents to read; of more, blocks are drawn at random.
        near_docs: Documents to look for near duplicates among.
        plot: Write a picture to this file, .png or .svg.
        json: Print one line of JSON instead of the tables.
        seed: Which blocks are drawn.
    """
    for name, value in (("max_docs", max_docs), ("near_docs", near_docs)):
        if value < 1:
            raise UserError(f"{name} is {value}, but must be at least 1")
    paths = [data] if isinstance(data, str) else data
    sources = {one: FileSource(one) for one in paths}
    if not sources:
        raise UserError("data is an empty list; give at least one file or folder")
    count = None if tokenizer is None else _token_counter(Tokenizer.load(tokenizer))
    found = corpus_statistics({**sources}, count, max_docs=max_docs, near_docs=near_docs, seed=seed)
    if not found.documents:
        raise UserError(f"{', '.join(paths)}: no documents, {found.passed_over} rows passed over")
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
    lines = [f"documents            {found.documents:,}{sample}, {found.passed_over:,} rows passed over"]
    lines += [f"characters           {found.characters:,} ({found.bytes:,} bytes)"]
    if found.tokens is not None:
        rate = found.bytes / max(1, found.tokens)
        lines += [f"tokens               {found.tokens:,} ({rate:.2f} bytes a token, BOS counted)"]
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
    """Three tables of names and shares."""
    lengths = [(f"{2**power:,} and more", count / found.documents) for power, count in found.lengths.items()]
    chars = {name: counts["characters"] for name, counts in found.sources.items()}
    return {
        "documents by characters": lengths,
        "characters by language (a guess)": _largest(found.languages, found.characters),
        "characters by source": _largest(chars, found.characters),
    }


def _largest(counts: dict[str, int], total: int) -> list[tuple[str, float]]:
    """The largest shares; the others are put together."""
    rows = sorted(((name, count / total) for name, count in counts.items()), key=lambda row: -row[1])
    if len(rows) <= _MOST_ROWS:
        return rows
    return [*rows[:_MOST_ROWS], (f"{len(rows) - _MOST_ROWS} others", sum(share for _, share in rows[_MOST_ROWS:]))]

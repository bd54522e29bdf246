"""bench.py data: how fast text becomes batches, beside a plain loop, and how long training would wait for them."""

import json as json_format
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.loader import ResumableLoader
from nanochat_lit.data.packing import BestFitRows
from nanochat_lit.data.prepared import TOKENIZER_FOLDER, encoded_documents, is_prepared
from nanochat_lit.data.shards import documents
from nanochat_lit.data.stream import PretrainStream
from nanochat_lit.tokenizer import Tokenizer

SETTLING_BATCHES = 30


@dataclass(frozen=True, kw_only=True)
class PackingRow:
    """Packing documents of tokens into rows, by one rule."""

    long_documents: str
    """The rule: crop or split."""
    tokens_per_s: float
    """Median, of rows given out."""
    scan_tokens_per_s: float | None
    """Of the same rows found by looking through the whole buffer for every document; None where none is measured."""
    lost: float
    """Share of the tokens that is thrown away."""


@dataclass(frozen=True, kw_only=True)
class LoaderRow:
    """Batches from one kind of data, by a number of processes."""

    data: str
    """text or prepared."""
    num_workers: int | None
    """None is the plain loop."""
    tokens_per_s: float
    """Median, asked for as fast as they come."""
    waits: dict[str, float]
    """Median share of the time spent waiting, by tokens asked for per second."""


@dataclass(frozen=True)
class _Shape:
    """What all loaders make."""

    tokenizer: Tokenizer
    """Of the text."""
    sequence_len: int
    """Tokens in a row."""
    micro_batch_size: int
    """Rows in a batch."""
    buffer_size: int
    """Documents that packing chooses from."""


def bench_data(
    data: str,
    prepared: str | None = None,
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    train_chars: int = 10_000_000,
    max_docs: int = 4000,
    sequence_len: int = 512,
    micro_batch_size: int = 32,
    buffer_size: int = 1000,
    num_workers: int = 2,
    demands: list[int] | None = None,
    seconds: float = 3.0,
    repeats: int = 3,
    json: bool = False,
) -> None:
    """Measure tokenizer, packing and loader on text; medians.

    A training that computes on a GPU is played by one that sleeps as long as it would compute.

    Args:
        data: File or folder of text.
        prepared: The folder that `data prepare` made of it; null measures text alone.
        tokenizer: Folder of a tokenizer; null takes that of `prepared`, or the one that is trained to measure training.
        vocab_size: Of the tokenizer that is trained.
        train_chars: Characters it is trained on.
        max_docs: Documents that are encoded and packed.
        sequence_len: Tokens in a row.
        micro_batch_size: Rows in a batch.
        buffer_size: Documents that packing chooses from.
        num_workers: Loader processes.
        demands: Tokens that training takes per second, as in '[500000, 1000000]'; null is the latter.
        seconds: Length of a measurement of the loader.
        repeats: Measurements of each kind.
        json: Print only JSON.
    """
    asked = [1_000_000] if demands is None else demands
    sizes = (train_chars, max_docs, sequence_len, micro_batch_size, num_workers, repeats, *asked)
    if not asked or min(sizes) < 1 or seconds <= 0:
        raise UserError(
            "train_chars, max_docs, sequence_len, micro_batch_size, num_workers, repeats, demands and seconds must be above 0"
        )
    if prepared is not None and not is_prepared(prepared):
        raise UserError(f"'{prepared}' is no folder that `data prepare` has written")
    texts = list(islice(documents(data, "train"), max_docs))
    trained, train_mb_per_s = _train(data, vocab_size, train_chars)
    folder = tokenizer or (str(Path(prepared) / TOKENIZER_FOLDER) if prepared else None)
    used = Tokenizer.load(folder) if folder else trained
    tokens, encoding = _encode(used, texts, repeats)
    shape = _Shape(used, sequence_len, micro_batch_size, buffer_size)
    paths = {"text": data, **({"prepared": prepared} if prepared else {})}
    loaders = [
        _plain_row(texts, shape, repeats),
        *(
            _loader_row(name, path, shape, workers, asked, seconds, repeats)
            for name, path in paths.items()
            for workers in (0, num_workers)
        ),
    ]
    report = {
        "data": data,
        "vocab_size": used.vocab_size,
        "sequence_len": sequence_len,
        "micro_batch_size": micro_batch_size,
        "buffer_size": buffer_size,
        "tokenizer": {"trained_vocab_size": trained.vocab_size, "train_mb_per_s": train_mb_per_s, **encoding},
        "packing": [asdict(row) for row in _packing(tokens, sequence_len + 1, buffer_size, repeats)],
        "loader": [asdict(row) for row in loaders],
    }
    print(json_format.dumps(report) if json else _table(report))


def scanned_rows(documents: Iterable[Sequence[int]], row_len: int, buffer_size: int) -> Iterator[list[int]]:
    """What `BestFitRows` gives when it crops, found as one would write it first: by looking through the whole buffer."""
    waiting, buffer = iter(documents), []
    while True:
        row: list[int] = []
        while len(row) < row_len:
            buffer += islice(waiting, buffer_size - len(buffer))
            if not buffer:
                return
            space, best, best_len = row_len - len(row), -1, 0
            for index, document in enumerate(buffer):
                if best_len < len(document) <= space:
                    best, best_len = index, len(document)
            if best < 0:
                best = min(range(len(buffer)), key=lambda index: len(buffer[index]))
            row += buffer.pop(best)[:space]
        yield row


def _train(data: str, vocab_size: int, train_chars: int) -> tuple[Tokenizer, float]:
    texts: list[str] = []
    left = train_chars
    for text in documents(data, "train"):
        texts.append(text[:left])
        left -= len(texts[-1])
        if left <= 0:
            break
    start_s = time.perf_counter()
    tokenizer = Tokenizer.train(texts, vocab_size, doc_cap=train_chars)
    return tokenizer, sum(len(text.encode()) for text in texts) / (time.perf_counter() - start_s) / 1e6


def _encode(tokenizer: Tokenizer, texts: list[str], repeats: int) -> tuple[list[np.ndarray], dict[str, float]]:
    """The texts as tokens, and how fast that goes in one thread, median."""
    tokens: list[np.ndarray] = []
    times_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        tokens = [document for text in texts for document in encoded_documents(tokenizer, [text])]
        times_s.append(time.perf_counter() - start_s)
    encode_s = statistics.median(times_s)
    num_tokens, num_bytes = sum(map(len, tokens)), sum(len(text.encode()) for text in texts)
    return tokens, {
        "encode_mb_per_s": num_bytes / encode_s / 1e6,
        "encode_tokens_per_s": num_tokens / encode_s,
        "bytes_per_token": num_bytes / num_tokens,
    }


def _packing(tokens: list[np.ndarray], row_len: int, buffer_size: int, repeats: int) -> Iterator[PackingRow]:
    """Both rules; cropping beside the scan over the same documents as lists."""
    lists = [document.tolist() for document in tokens]
    scan = statistics.median(
        _tokens_per_s(lambda: scanned_rows(lists, row_len, buffer_size), row_len) for _ in range(repeats)
    )
    for rule in ("crop", "split"):
        speeds = []
        rows = BestFitRows(tokens, row_len, buffer_size, rule)
        for _ in range(repeats):
            rows = BestFitRows(tokens, row_len, buffer_size, rule)
            speeds.append(_tokens_per_s(lambda rows=rows: rows, row_len))
        yield PackingRow(
            long_documents=rule,
            tokens_per_s=statistics.median(speeds),
            scan_tokens_per_s=scan if rule == "crop" else None,
            lost=rows.counts.lost,
        )


def _tokens_per_s(make: Callable[[], Iterable[Any]], row_len: int) -> float:
    start_s = time.perf_counter()
    num_rows = sum(1 for _ in make())
    if num_rows == 0:
        raise UserError(
            "the documents do not fill a single row; give more text (--max_docs), or a smaller sequence_len"
        )
    return num_rows * row_len / (time.perf_counter() - start_s)


def _plain_row(texts: list[str], shape: _Shape, repeats: int) -> LoaderRow:
    speeds = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        num_tokens = sum(batch["inputs"].numel() for batch in _plain_loop(texts, shape))
        speeds.append(num_tokens / (time.perf_counter() - start_s))
    return LoaderRow(data="text", num_workers=None, tokens_per_s=statistics.median(speeds), waits={})


def _plain_loop(texts: list[str], shape: _Shape) -> Iterator[dict[str, torch.Tensor]]:
    """Batches as one process makes them that encodes a document, scans its buffer and goes on."""
    token_lists = ([shape.tokenizer.bos_id, *shape.tokenizer.encode(text)] for text in texts)
    rows = scanned_rows(token_lists, shape.sequence_len + 1, shape.buffer_size)
    while batch := list(islice(rows, shape.micro_batch_size)):
        tokens = torch.tensor(batch)
        yield {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


def _loader_row(
    name: str, path: str, shape: _Shape, num_workers: int, demands: list[int], seconds: float, repeats: int
) -> LoaderRow:
    stream = PretrainStream(
        texts=path,
        tokenizer=shape.tokenizer,
        sequence_len=shape.sequence_len,
        micro_batch_size=shape.micro_batch_size,
        buffer_size=shape.buffer_size,
        long_documents="split",
    )
    loader = ResumableLoader(stream, num_workers)
    batches = iter(loader)
    _consume(loader, batches, None, seconds / 10)  # fills the buffers
    speed = statistics.median(_consume(loader, batches, None, seconds)[0] for _ in range(repeats))
    waits = {
        str(demand): statistics.median(_consume(loader, batches, demand, seconds)[1] for _ in range(repeats))
        for demand in demands
    }
    return LoaderRow(data=name, num_workers=num_workers, tokens_per_s=speed, waits=waits)


def _consume(
    loader: ResumableLoader, batches: Iterator[dict[str, torch.Tensor]], demand: int | None, seconds: float
) -> tuple[float, float]:
    """Tokens per second, and the share of the time spent waiting, of a training that takes `demand` tokens a second."""

    def step() -> int:
        num_tokens = next(batches)["inputs"].numel()
        if demand is not None:
            time.sleep(num_tokens / demand)
        return num_tokens

    for _ in range(SETTLING_BATCHES if demand is not None else 1):
        step()
    start_s, waited_s, num_tokens = time.perf_counter(), loader.waited_s, 0
    while time.perf_counter() - start_s < seconds:
        num_tokens += step()
    spent_s = time.perf_counter() - start_s
    return num_tokens / spent_s, (loader.waited_s - waited_s) / spent_s


def _table(report: dict[str, Any]) -> str:
    tokenizer = report["tokenizer"]
    demands = list(report["loader"][-1]["waits"])
    heading = (
        f"vocabulary {report['vocab_size']:,}, rows of {report['sequence_len']:,}, {report['micro_batch_size']} a batch\n"
        f"tokenizer: trained ({tokenizer['trained_vocab_size']:,} tokens) at {tokenizer['train_mb_per_s']:.1f} MB/s, "
        f"encodes {tokenizer['encode_mb_per_s']:.1f} MB/s = {tokenizer['encode_tokens_per_s']:,.0f} tokens/s in one thread\n"
    )
    lines = [
        heading,
        "| packing | tokens/s | by a scan | times | lost |",
        "|---|---|---|---|---|",
    ]
    for row in report["packing"]:
        scan = row["scan_tokens_per_s"]
        compared = f"{scan:,.0f} | {row['tokens_per_s'] / scan:.0f}" if scan else "|"
        lines.append(f"| {row['long_documents']} | {row['tokens_per_s']:,.0f} | {compared} | {row['lost']:.1%} |")
    lines += [
        "",
        "| data | workers | tokens/s |" + "".join(f" wait at {int(demand):,}/s |" for demand in demands),
        "|---|---|---|" + "---|" * len(demands),
    ]
    for row in report["loader"]:
        workers = "plain loop" if row["num_workers"] is None else row["num_workers"]
        waits = "".join(f" {row['waits'][demand]:.2%} |" if row["waits"] else " |" for demand in demands)
        lines.append(f"| {row['data']} | {workers} | {row['tokens_per_s']:,.0f} |{waits}")
    return "\n".join(lines)

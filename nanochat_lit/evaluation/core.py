"""CORE: the mean centered accuracy over 22 tasks, few-shot, for base models (Li et al. 2024, DCLM).

Records become token sequences with a scored part, as implemented in nanochat:

multiple_choice     one context, several continuations    scored: from the first token that differs between choices
schema              several contexts, one continuation    scored: the common suffix of all sequences
language_modeling   one context, one continuation         scored: the continuation's tokens

https://arxiv.org/abs/2406.11794
"""

import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch

from nanochat_lit.common.distributed import rank, sum_over_ranks, world_size
from nanochat_lit.evaluation.core_bundle import BASELINES, CORE_LABELS, CoreTask
from nanochat_lit.evaluation.huggingface import TextTokenizer
from nanochat_lit.evaluation.score_report import summarize
from nanochat_lit.evaluation.scoring import Example, RowScore, RowScorer, common_prefix
from nanochat_lit.evaluation.task_results import ResultsFile, TaskResult, digest, measure_tasks

FEWSHOT_SEED = 1234


def fewshot_rows(task: CoreTask, index: int) -> list[dict[str, Any]]:
    """Return the few-shot examples of record `index`: other records, drawn with a seed per record."""
    places = Random(FEWSHOT_SEED + index).sample(range(len(task.rows) - 1), task.num_fewshot)
    return [task.rows[place + (place >= index)] for place in places]  # skips the record itself


def prompts(task: CoreTask, index: int) -> list[str]:
    """Return the texts of record `index`: one per choice or context, or the text without and with its continuation."""
    row, delimiter = task.rows[index], task.delimiter
    shown = "".join(_solved(task, other) + "\n\n" for other in fewshot_rows(task, index))
    if task.kind == "multiple_choice":
        return [f"{shown}{row['query']}{delimiter}{choice}" for choice in row["choices"]]
    if task.kind == "schema":
        return [f"{shown}{context}{delimiter}{row['continuation']}" for context in row["context_options"]]
    context = f"{shown}{row['context'].strip()}{delimiter}"
    # stripped: a trailing space would be a separate token, unlike in the text with the continuation
    return [context.strip(), context + row["continuation"]]


def _solved(task: CoreTask, row: dict[str, Any]) -> str:
    if task.kind == "multiple_choice":
        return f"{row['query']}{task.delimiter}{row['choices'][row['gold']]}"
    context = row["context_options"][row["gold"]] if task.kind == "schema" else row["context"].strip()
    return f"{context}{task.delimiter}{row['continuation']}"


def encode_examples(
    task: CoreTask, indices: Sequence[int], tokenizer: TextTokenizer, sequence_len: int
) -> tuple[list[Example], int]:
    """Tokenize records of a task for scoring; return the examples, and the number of truncated ones.

    Sequences longer than the context are truncated on the left. All sequences of an example lose the same number of
    tokens, so that they keep a common prefix.
    """
    texts = [prompts(task, index) for index in indices]
    encoded = iter(tokenizer.encode_batch([text for group in texts for text in group], 2))
    examples, num_cut = [], 0
    for group in texts:
        rows = [np.array([tokenizer.bos_id, *next(encoded)], dtype=np.int32) for _ in group]
        rows, starts = scored_parts(task.kind, rows)
        excess = max(map(len, rows)) - sequence_len
        if excess > 0:
            num_cut += 1
            # a scored part longer than the context is truncated too
            starts = [max(1, start - excess) for start in starts]
            rows = [row[min(excess, len(row) - 2) :] for row in rows]
            starts = [min(start, len(row) - 1) for start, row in zip(starts, rows, strict=True)]
        examples.append(Example(rows=rows, starts=starts))
    return examples, num_cut


def scored_parts(kind: str, rows: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """Return the sequences to run through the model, and where the scored part of each begins.

    At least the last token of every sequence is scored (a choice may be a prefix of another), and never <|bos|>.
    """
    if kind == "schema":
        common = common_prefix([row[::-1] for row in rows])
        return rows, [max(1, len(row) - common) for row in rows]
    start = common_prefix(rows)
    if kind == "language_modeling":
        # the prompt without continuation is a prefix of the one with it, unless a token spans the boundary
        rows = rows[1:]
    start = max(1, min(start, *(len(row) - 1 for row in rows)))
    return rows, [start] * len(rows)


def is_right(task: CoreTask, index: int, scores: Sequence[RowScore]) -> bool:
    """Return whether the model answers record `index` correctly; ties select the first choice."""
    if task.kind == "language_modeling":
        return scores[0].is_greedy
    losses = [score.mean_loss for score in scores]
    return losses.index(min(losses)) == task.rows[index]["gold"]


EXAMPLES_PER_WINDOW = 2048
"""Number of examples to tokenize at a time; large, so that examples of equal lengths can be batched."""


def evaluate_core(
    scorer: RowScorer,
    tokenizer: TextTokenizer,
    tasks: Sequence[CoreTask],
    results: ResultsFile | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Evaluate every task and return one result per task; the ranks of a process group share the examples.

    `results` and `on_task` are those of `measure_tasks`.
    """
    return measure_tasks(tasks, lambda task: evaluate_task(scorer, tokenizer, task), results, on_task)


def evaluate_task(scorer: RowScorer, tokenizer: TextTokenizer, task: CoreTask) -> TaskResult:
    """Evaluate one task."""
    start_s = time.perf_counter()
    # 1 per correct record, then the number of truncated ones
    counts = torch.zeros(len(task.rows) + 1, dtype=torch.int64)
    mine = range(rank(), len(task.rows), world_size())
    for begin in range(0, len(mine), EXAMPLES_PER_WINDOW):
        indices = mine[begin : begin + EXAMPLES_PER_WINDOW]
        examples, num_cut = encode_examples(task, indices, tokenizer, scorer.sequence_len)
        counts[-1] += num_cut
        for index, scores in zip(indices, scorer.score(examples), strict=True):
            counts[index] = int(is_right(task, index, scores))
    *correct, num_cut = sum_over_ranks(counts.to(scorer.device)).tolist()
    return TaskResult(
        label=task.label,
        kind=task.kind,
        num_fewshot=task.num_fewshot,
        correct=correct,
        num_samples=1,
        num_cut=num_cut,
        seconds=time.perf_counter() - start_s,
    )


def summarize_core(
    tasks: Sequence[CoreTask], results: Sequence[TaskResult], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report of `summarize`, with both versions of the baselines."""
    baselines = {version: {task.label: task.baselines()[version] for task in tasks} for version in BASELINES}
    return summarize("core", CORE_LABELS, results, baselines, {**about, "world_size": world_size()})


def bundle_digest(tasks: Sequence[CoreTask]) -> str:
    """Return a digest of the tasks; results of tasks with equal digests can be combined."""
    return digest([[task.label, task.kind, task.num_fewshot, task.delimiter, task.rows] for task in tasks])

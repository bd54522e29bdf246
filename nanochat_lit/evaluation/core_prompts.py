"""From the rows of a CORE task to tokens with a scored part: few-shot examples, the three kinds, what counts.

multiple_choice     one context, several continuations    scored from where the choices' tokens begin to differ
schema              several contexts, one continuation    scored: the tokens that all rows end with
language_modeling   one context, one continuation         scored: the continuation's tokens

Rules of DCLM (Li et al. 2024, https://arxiv.org/abs/2406.11794) as nanochat applies them.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

import numpy as np

from nanochat_lit.evaluation.core_bundle import CoreTask
from nanochat_lit.evaluation.scoring import Example, RowScore, common_prefix

FEWSHOT_SEED = 1234


class Encoder(Protocol):
    """The part of a tokenizer that is needed here."""

    @property
    def bos_id(self) -> int:
        """The id that begins every row."""
        ...

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text."""
        ...


def fewshot_rows(task: CoreTask, index: int) -> list[dict[str, Any]]:
    """The examples shown before row `index`: other rows, drawn from a seed that is the row's own.

    Args:
        task: The task.
        index: Of the row.
    """
    places = Random(FEWSHOT_SEED + index).sample(range(len(task.rows) - 1), task.num_fewshot)
    return [task.rows[place + (place >= index)] for place in places]  # the row itself is passed over


def prompts(task: CoreTask, index: int) -> list[str]:
    """The texts of row `index`: one per choice or context; for language_modeling without and with the continuation.

    Args:
        task: The task.
        index: Of the row.
    """
    row, delimiter = task.rows[index], task.delimiter
    shown = "".join(_solved(task, other) + "\n\n" for other in fewshot_rows(task, index))
    if task.kind == "multiple_choice":
        return [f"{shown}{row['query']}{delimiter}{choice}" for choice in row["choices"]]
    if task.kind == "schema":
        return [f"{shown}{context}{delimiter}{row['continuation']}" for context in row["context_options"]]
    context = f"{shown}{row['context'].strip()}{delimiter}"
    # stripped: a space at the end would be a token of its own, which the text with the continuation does not have
    return [context.strip(), context + row["continuation"]]


def _solved(task: CoreTask, row: dict[str, Any]) -> str:
    if task.kind == "multiple_choice":
        return f"{row['query']}{task.delimiter}{row['choices'][row['gold']]}"
    context = row["context_options"][row["gold"]] if task.kind == "schema" else row["context"].strip()
    return f"{context}{task.delimiter}{row['continuation']}"


def encode_examples(
    task: CoreTask, indices: Sequence[int], tokenizer: Encoder, sequence_len: int
) -> tuple[list[Example], int]:
    """Rows of a task, ready to be scored.

    Rows that are too long for the context lose tokens on the left; all rows of an example lose as many as its longest, so
    that they still share their beginning.

    Args:
        task: The task.
        indices: Which rows.
        tokenizer: The model's.
        sequence_len: Longest row in tokens.

    Returns:
        The examples, and how many were cut.
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
            # a scored part that is longer than the context loses its own beginning too
            starts = [max(1, start - excess) for start in starts]
            rows = [row[min(excess, len(row) - 2) :] for row in rows]
            starts = [min(start, len(row) - 1) for start, row in zip(starts, rows, strict=True)]
        examples.append(Example(rows=rows, starts=starts))
    return examples, num_cut


def scored_parts(kind: str, rows: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """Which rows go through the model, and where the scored part of each begins.

    At least the last token of every row is scored (a choice may be the beginning of another), and never <|bos|>.

    Args:
        kind: Of the task.
        rows: Tokens of the prompts, <|bos|> first.
    """
    if kind == "schema":
        common = common_prefix([row[::-1] for row in rows])
        return rows, [max(1, len(row) - common) for row in rows]
    start = common_prefix(rows)
    if kind == "language_modeling":
        # the prompt without the continuation is a beginning of the one with it, unless a token spans the border
        rows = rows[1:]
    start = max(1, min(start, *(len(row) - 1 for row in rows)))
    return rows, [start] * len(rows)


def is_right(task: CoreTask, index: int, scores: Sequence[RowScore]) -> bool:
    """Whether the model answers row `index` rightly; of equal losses the first choice counts.

    Args:
        task: The task.
        index: Of the row.
        scores: Of the rows of its example.
    """
    if task.kind == "language_modeling":
        return scores[0].is_greedy
    losses = [score.mean_loss for score in scores]
    return losses.index(min(losses)) == task.rows[index]["gold"]

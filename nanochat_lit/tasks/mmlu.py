"""MMLU: questions on 57 subjects with four choices (Hendrycks et al. 2020). https://arxiv.org/abs/2009.03300."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat_lit.tasks.base import Conversation, multiple_choice_conversation
from nanochat_lit.tasks.rows import Row, RowTask, load_rows, missing_text, wrong_choices, wrong_place

LETTERS = ("A", "B", "C", "D")


class MMLU(RowTask):
    """Questions with four choices, to be answered by a letter.

    Args:
        split: "auxiliary_train" (100 thousand questions to learn from), "dev", "validation" or "test".
        path: A local file with the hub's fields `question`, `choices`, `answer` (0 to 3) and perhaps `subject`; None
            reads the hub's cais/mmlu.
        seed: Of the order; None keeps that of the data set, which is by subject.
    """

    def __init__(self, split: str = "test", path: str | Path | None = None, seed: int | None = 42) -> None:
        subset = "auxiliary_train" if split == "auxiliary_train" else "all"
        hub_split = "train" if split == "auxiliary_train" else split
        super().__init__(
            load_rows(path=path, hub="cais/mmlu", subset=subset, split=hub_split, check=_problem, seed=seed)
        )

    def _conversation(self, row: Row) -> Conversation:
        row = _inner(row)
        conversation = multiple_choice_conversation(row["question"], row["choices"], LETTERS, LETTERS[row["answer"]])
        return {**conversation, "subject": row.get("subject") or ""}

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Whether the completion is the right letter."""
        del tool_calls
        return completion.strip() == conversation["messages"][-1]["content"]


def _inner(row: Row) -> Row:
    """The fields themselves; the hub wraps those of auxiliary_train into one called `train`."""
    inner = row.get("train")
    return inner if isinstance(inner, dict) else row


def _problem(row: Row) -> str | None:
    row = _inner(row)
    if problem := missing_text(row, "question") or wrong_choices(row.get("choices")):
        return problem
    if len(row["choices"]) != len(LETTERS):
        return f"{len(row['choices'])} choices, but the questions of MMLU have {len(LETTERS)}"
    return wrong_place("answer", row.get("answer"), row["choices"])

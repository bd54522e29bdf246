"""MMLU: multiple-choice questions on 57 subjects (Hendrycks et al. 2020). https://arxiv.org/abs/2009.03300."""

from collections.abc import Sequence
from pathlib import Path

from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import MultipleChoiceTask, Row, missing_text, wrong_choices, wrong_place

LETTERS = ("A", "B", "C", "D")


class MMLU(MultipleChoiceTask):
    """Multiple-choice questions with four choices, answered by a letter.

    Args:
        split: "auxiliary_train" (100,000 training questions), "dev", "validation" or "test".
        path: Local file with the hub's fields `question`, `choices`, `answer` (0 to 3) and optionally `subject`; None
            downloads cais/mmlu from the hub.
        seed: Seed of the order; None keeps the order of the data set, which is by subject.
    """

    def __init__(self, split: str = "test", path: str | Path | None = None, seed: int | None = 42) -> None:
        is_training = split == "auxiliary_train"
        super().__init__(path, "cais/mmlu", "train" if is_training else split, split if is_training else "all", seed)

    def _fields(self, row: Row) -> tuple[str, Sequence[str], Sequence[str], str]:
        row = _inner(row)
        return row["question"], row["choices"], LETTERS, LETTERS[row["answer"]]

    def _conversation(self, row: Row) -> Conversation:
        return {**super()._conversation(row), "subject": _inner(row).get("subject") or ""}

    def _problem(self, row: Row) -> str | None:
        row = _inner(row)
        if problem := missing_text(row, "question") or wrong_choices(row.get("choices")):
            return problem
        if len(row["choices"]) != len(LETTERS):
            return f"{len(row['choices'])} choices, but MMLU questions have {len(LETTERS)}"
        return wrong_place("answer", row.get("answer"), row["choices"])


def _inner(row: Row) -> Row:
    """Return the fields of a record; the hub nests those of auxiliary_train in a field `train`."""
    inner = row.get("train")
    return inner if isinstance(inner, dict) else row

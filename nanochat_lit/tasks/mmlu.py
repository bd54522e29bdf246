"""MMLU: multiple-choice questions on 57 subjects (Hendrycks et al. 2020). https://arxiv.org/abs/2009.03300."""

from collections.abc import Sequence
from pathlib import Path

from nanochat_lit.tasks.base import Conversation, multiple_choice_conversation
from nanochat_lit.tasks.rows import Row, RowTask, load_rows, missing_text, wrong_choices, wrong_place

LETTERS = ("A", "B", "C", "D")


class MMLU(RowTask):
    """Multiple-choice questions with four choices, answered by a letter.

    Args:
        split: "auxiliary_train" (100,000 training questions), "dev", "validation" or "test".
        path: Local file with the hub's fields `question`, `choices`, `answer` (0 to 3) and optionally `subject`; None
            downloads cais/mmlu from the hub.
        seed: Seed of the order; None keeps the order of the data set, which is by subject.
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
        """Return whether the completion is the correct letter."""
        del tool_calls
        return completion.strip() == conversation["messages"][-1]["content"]


def _inner(row: Row) -> Row:
    """Return the fields of a record; the hub nests those of auxiliary_train in a field `train`."""
    inner = row.get("train")
    return inner if isinstance(inner, dict) else row


def _problem(row: Row) -> str | None:
    row = _inner(row)
    if problem := missing_text(row, "question") or wrong_choices(row.get("choices")):
        return problem
    if len(row["choices"]) != len(LETTERS):
        return f"{len(row['choices'])} choices, but MMLU questions have {len(LETTERS)}"
    return wrong_place("answer", row.get("answer"), row["choices"])

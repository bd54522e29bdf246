"""ARC: grade-school science questions, easy and challenge set (Clark et al. 2018). https://arxiv.org/abs/1803.05457."""

from collections.abc import Sequence
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.rows import MultipleChoiceTask, Row, missing_text, wrong_choices, wrong_place

SUBSETS = ("ARC-Easy", "ARC-Challenge")
_PREFIX = "Question: "


class ARC(MultipleChoiceTask):
    """Multiple-choice questions with three to five choices, answered by a letter.

    Args:
        subset: "ARC-Easy" or "ARC-Challenge".
        split: "train", "validation" or "test".
        path: Local file with the hub's fields `question`, `choices` ({"text", "label"}) and `answerKey`, or with those
            of an evaluation bundle: `query`, `choices` and `gold`. None downloads allenai/ai2_arc from the hub.
        seed: Seed of the order; None keeps the order of the data set.
    """

    def __init__(
        self, subset: str = "ARC-Easy", split: str = "test", path: str | Path | None = None, seed: int | None = 42
    ) -> None:
        if subset not in SUBSETS:
            raise UserError(f"subset is {subset!r}; use one of {', '.join(SUBSETS)}")
        super().__init__(path, "allenai/ai2_arc", split, subset, seed)

    def _fields(self, row: Row) -> tuple[str, Sequence[str], Sequence[str], str]:
        """Return question, choices, letters and correct letter from either format; some hub records label with numbers."""
        if "query" in row:
            letters = [chr(ord("A") + place) for place in range(len(row["choices"]))]
            return row["query"].removeprefix(_PREFIX), row["choices"], letters, letters[row["gold"]]
        return row["question"], row["choices"]["text"], row["choices"]["label"], row["answerKey"]

    def _problem(self, row: Row) -> str | None:
        if "query" in row:
            problem = missing_text(row, "query") or wrong_choices(row.get("choices"))
            return problem or wrong_place("gold", row.get("gold"), row["choices"])
        if problem := missing_text(row, "question", "answerKey"):
            return problem
        choices = row.get("choices")
        if not isinstance(choices, dict) or not {"text", "label"} <= set(choices):
            return "'choices' must have the lists 'text' and 'label'"
        if problem := wrong_choices(choices["text"]) or wrong_choices(choices["label"]):
            return problem
        if len(choices["text"]) != len(choices["label"]):
            return f"{len(choices['text'])} choices with {len(choices['label'])} labels"
        if row["answerKey"] not in choices["label"]:
            return f"'answerKey' is {row['answerKey']!r}, which is not one of the labels {', '.join(choices['label'])}"
        return None

"""GSM8K: grade-school math word problems, solved step by step with a calculator (Cobbe et al. 2021).

https://arxiv.org/abs/2110.14168
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import Row, RowTask, load_rows, missing_text

INSTRUCTION = 'Reason step by step. End with a line that is "#### " and the number alone.'

_CALL = re.compile(r"<<([^<>]*)>>")
_ANSWER = re.compile(r"####\s*\$?(-?[\d.,]+)")


class GSM8K(RowTask):
    """Questions with worked solutions: calculator calls as tool parts, and the number after "####" at the end.

    Args:
        split: "train" or "test".
        path: Local file with the hub's fields `question` and `answer`; None downloads openai/gsm8k from the hub.
        seed: Seed of the order; None keeps the order of the data set.
    """

    def __init__(self, split: str = "test", path: str | Path | None = None, seed: int | None = 42) -> None:
        super().__init__(
            load_rows(path=path, hub="openai/gsm8k", subset="main", split=split, check=_problem, seed=seed)
        )

    def _conversation(self, row: Row) -> Conversation:
        return {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": answer_parts(row["answer"])},
            ],
            "instruction": INSTRUCTION,
        }

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion ends with the correct number."""
        del tool_calls
        return self.reward(conversation, completion) == 1.0

    def has_form(self, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion has a number after "####", as the answers of the data set."""
        del tool_calls
        return extract_answer(completion) is not None

    def reward(self, conversation: Conversation, completion: str) -> float:
        """Return 1 if the number after "####" in the visible text of an answer is correct, else 0."""
        wanted = extract_answer(_text(conversation["messages"][-1]["content"]))
        return float(wanted is not None and extract_answer(completion) == wanted)


def answer_parts(answer: str) -> list[dict[str, str]]:
    """Split a worked solution into parts: <<12/60=0.2>> becomes the call 12/60 and its result 0.2."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(_CALL.split(answer)):
        if index % 2 == 0:
            parts += [{"type": "text", "text": piece}] if piece else []
            continue
        expression, equals, result = piece.rpartition("=")
        parts.append({"type": "python", "text": expression if equals else result})
        parts.append({"type": "python_output", "text": result if equals else ""})
    return parts


def extract_answer(text: str) -> Decimal | None:
    """Return the first number after "####", without commas; None if there is none."""
    match = _ANSWER.search(text)
    if match is None:
        return None
    try:
        return Decimal(match[1].replace(",", "").rstrip("."))
    except InvalidOperation:
        return None


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _problem(row: Row) -> str | None:
    if problem := missing_text(row, "question", "answer"):
        return problem
    return None if extract_answer(row["answer"]) is not None else "'answer' has no number after ####"

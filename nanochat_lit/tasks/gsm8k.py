"""GSM8K: grade-school math word problems, solved step by step with a calculator (Cobbe et al. 2021).

https://arxiv.org/abs/2110.14168
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import Row, RowTask, missing_text
from nanochat_lit.tokenizer.chat import text_of

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
        super().__init__(path, "openai/gsm8k", split, "main", seed)

    def _problem(self, row: Row) -> str | None:
        if problem := missing_text(row, "question", "answer"):
            return problem
        return None if extract_answer(row["answer"]) is not None else "'answer' has no number after ####"

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
        wanted = extract_answer(text_of(conversation["messages"][-1]["content"]))
        return wanted is not None and extract_answer(completion) == wanted

    def has_form(self, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion has a number after "####", as the answers of the data set."""
        del tool_calls
        return extract_answer(completion) is not None


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

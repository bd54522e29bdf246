"""HumanEval: functions to complete from their signature and docstring, evaluated by tests (Chen et al. 2021).

https://arxiv.org/abs/2107.03374
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import Row, RowTask, missing_text

RunCode = Callable[[str], Any]
"""Runs a program and returns whether it finished without an error, as a bool or an object with `ok`.

The program is untrusted: use a sandbox."""

INSTRUCTION = "Complete the function. Answer with the whole function, imports included, in one block of Python code."

_FENCED = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval(RowTask):
    """Programming problems.

    Args:
        run_code: Runs a candidate together with its tests; required by `evaluate`.
        path: Local file with the hub's fields `prompt`, `canonical_solution`, `test` and `entry_point`; None downloads
            openai/openai_humaneval from the hub.
        seed: Seed of the order; None keeps the order of the data set.
    """

    def __init__(self, run_code: RunCode | None = None, path: str | Path | None = None, seed: int | None = 42) -> None:
        self.run_code = run_code
        super().__init__(path, "openai/openai_humaneval", "test", seed=seed)

    def _problem(self, row: Row) -> str | None:
        return missing_text(row, "prompt", "canonical_solution", "test", "entry_point")

    def _conversation(self, row: Row) -> Conversation:
        return {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["prompt"] + "\n" + row["canonical_solution"]},
            ],
            "instruction": INSTRUCTION,
            "entry_point": row["entry_point"],
            "test": row["test"],
        }

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion's code passes the problem's tests; UserError without a valid run_code."""
        del tool_calls
        if self.run_code is None:
            raise UserError(
                "HumanEval runs code written by a model; pass an isolating run_code, such as nanochat_lit.run_python"
            )
        result = self.run_code(program(conversation, completion))
        passed = getattr(result, "ok", result)
        if not isinstance(passed, bool):
            raise UserError(
                f"run_code returned {result!r:.80}; it must return a bool or an object with a bool attribute ok"
            )
        return passed


def program(conversation: Conversation, completion: str) -> str:
    """Return the program that must not fail: the prompt's imports, the answer's first code block, the tests."""
    imports = leading_imports(conversation["messages"][0]["content"])
    check = f"check({conversation['entry_point']})"
    return "\n\n".join([imports, extract_code(completion), conversation["test"], check]) + "\n"


def leading_imports(source: str) -> str:
    """Return the import lines at the top of a program, which models often omit in their answer."""
    kept: list[str] = []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith(("import ", "from ")):
            kept.append(text)
        elif text and not text.startswith("#"):
            break
    return "\n".join(kept)


def extract_code(completion: str) -> str:
    """Return the first fenced code block, even if unclosed; without any, the whole text."""
    match = _FENCED.search(completion)
    return (match[1] if match else completion).strip("\n")

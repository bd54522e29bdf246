"""HumanEval: functions to write from their signature and docstring, judged by running tests (Chen et al. 2021).

https://arxiv.org/abs/2107.03374
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import Row, RowTask, load_rows, missing_text

RunCode = Callable[[str], Any]
"""Runs a program and returns whether it ended without an error, as a bool or as the `ok` of what it returns.

What it runs is untrusted: give it a sandbox."""

INSTRUCTION = "Complete the function. Answer with the whole function, imports included, in one block of Python code."

_FENCED = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval(RowTask):
    """Programming problems.

    Args:
        run_code: Runs a candidate together with its tests; without one nothing can be judged.
        path: A local file with the hub's fields `prompt`, `canonical_solution`, `test` and `entry_point`; None reads the
            hub's openai/openai_humaneval.
        seed: Of the order; None keeps that of the data set.
    """

    def __init__(self, run_code: RunCode | None = None, path: str | Path | None = None, seed: int | None = 42) -> None:
        self.run_code = run_code
        hub = "openai/openai_humaneval"
        super().__init__(load_rows(path=path, hub=hub, subset=None, split="test", check=_problem, seed=seed))

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
        """Whether the completion's code passes the problem's tests.

        Raises:
            UserError: If there is no run_code, or it does not return whether the program passed.
        """
        del tool_calls
        if self.run_code is None:
            raise UserError(
                "HumanEval runs what a model has written; give it a run_code that isolates it, such as nanochat_lit.run_python"
            )
        result = self.run_code(program(conversation, completion))
        passed = getattr(result, "ok", result)
        if not isinstance(passed, bool):
            raise UserError(f"run_code gave {result!r:.80}; it must return True or False, or something with such an ok")
        return passed


def program(conversation: Conversation, completion: str) -> str:
    """What has to run without an error: the prompt's imports, the completion's code, the tests.

    Args:
        conversation: One of the task's.
        completion: Visible text of an answer; of fenced code blocks the first counts.
    """
    imports = leading_imports(conversation["messages"][0]["content"])
    check = f"check({conversation['entry_point']})"
    return "\n\n".join([imports, extract_code(completion), conversation["test"], check]) + "\n"


def leading_imports(source: str) -> str:
    """The import lines at the top of a program; a model often leaves them out of its answer.

    Args:
        source: Python code.
    """
    kept: list[str] = []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith(("import ", "from ")):
            kept.append(text)
        elif text and not text.startswith("#"):
            break
    return "\n".join(kept)


def extract_code(completion: str) -> str:
    """The first fenced code block, also one that was never closed; without any, the whole text.

    Args:
        completion: What a model has answered.
    """
    match = _FENCED.search(completion)
    return (match[1] if match else completion).strip("\n")


def _problem(row: Row) -> str | None:
    return missing_text(row, "prompt", "canonical_solution", "test", "entry_point")

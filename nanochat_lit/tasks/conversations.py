"""Conversations of a file: anything in the format of `tokenizer.chat`, one JSON object a line."""

from __future__ import annotations

from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import Row, RowTask, load_rows
from nanochat_lit.tokenizer.chat import validate_conversation
from nanochat_lit.tokenizer.foreign_chat import as_conversation


class FileConversations(RowTask):
    """The conversations of a local file; they can be learnt from, not judged.

    Args:
        path: A .jsonl, .jsonl.gz or .parquet file with `messages` in each row, in our format, OpenAI's or ShareGPT's.
        seed: Of the order; None keeps that of the file.
    """

    def __init__(self, path: str | Path, seed: int | None = None) -> None:
        super().__init__(load_rows(path=path, hub="", subset=None, split="train", check=messages_problem, seed=seed))

    def _conversation(self, row: Row) -> Conversation:
        return as_conversation(row)


def messages_problem(row: Row) -> str | None:
    """What is wrong with a row that should be a conversation.

    Args:
        row: The row.
    """
    try:
        validate_conversation(as_conversation(row), "not a conversation")
    except UserError as error:
        return str(error)
    return None

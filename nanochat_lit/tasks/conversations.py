"""Conversations from a file, in the format of `tokenizer.chat`."""

from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import Row, RowTask
from nanochat_lit.tokenizer.chat import validate_conversation
from nanochat_lit.tokenizer.foreign_chat import as_conversation


class FileConversations(RowTask):
    """Conversations of a local file, for training only.

    Args:
        path: .jsonl, .jsonl.gz or .parquet file with `messages` in each record, in the native, OpenAI's or ShareGPT's
            format.
        seed: Seed of the order; None keeps the order of the file.
    """

    def __init__(self, path: str | Path, seed: int | None = None) -> None:
        super().__init__(path, hub="", split="train", seed=seed)

    def _problem(self, row: Row) -> str | None:
        return messages_problem(row)

    def _conversation(self, row: Row) -> Conversation:
        return as_conversation(row)


def messages_problem(row: Row) -> str | None:
    """Return the problem of a record that should be a conversation, or None."""
    try:
        validate_conversation(as_conversation(row), "not a conversation")
    except UserError as error:
        return str(error)
    return None

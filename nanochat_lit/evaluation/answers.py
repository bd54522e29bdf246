"""A model's answer as tasks evaluate it: the visible text and the tool calls."""

from collections.abc import Sequence
from typing import NamedTuple

from nanochat_lit.tokenizer import Tokenizer, parse_completion


class Answer(NamedTuple):
    """A parsed completion."""

    text: str
    """Visible text."""
    tool_calls: list[str]
    """Expressions of the calculator calls."""


def answer_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Answer:
    """Parse a completion.

    Args:
        tokenizer: Tokenizer of the model.
        token_ids: Completion, without the prompt.
    """
    parts = parse_completion(tokenizer, token_ids)
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return Answer(text, [part["text"] for part in parts if part["type"] == "python"])

"""What a model has answered, as the tasks judge it: the visible text, and the calls it has made."""

from collections.abc import Sequence
from typing import NamedTuple

from nanochat_lit.tokenizer import Tokenizer, parse_completion


class Answer(NamedTuple):
    """A completion for a task's judgement."""

    text: str
    """What a person sees of it."""
    tool_calls: list[str]
    """The expressions that were given to the calculator."""


def answer_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Answer:
    """The answer in a completion.

    Args:
        tokenizer: Of the model.
        token_ids: Without the prompt.
    """
    parts = parse_completion(tokenizer, token_ids)
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return Answer(text, [part["text"] for part in parts if part["type"] == "python"])

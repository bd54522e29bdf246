"""Pairs of answers, one of them preferred, in TRL's formats.

A record has `chosen` and `rejected`, and usually `prompt`. Each is a list of messages (OpenAI's or ShareGPT's) or a text: the
text of a prompt is the user's message, that of an answer the assistant's. Without a prompt, it is what both answers
begin with.

Reference:
    https://huggingface.co/docs/trl/dataset_formats#preference
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.rows import Row, RowTask
from nanochat_lit.tasks.tiny_world import judge
from nanochat_lit.tokenizer.chat import short, validate_conversation
from nanochat_lit.tokenizer.foreign_chat import ANSWER_ROLES, as_conversation

PAIR_FIELDS = ("prompt", "chosen", "rejected")


class Preferences(RowTask):
    """Preference pairs of a local file or a hub data set; a conversation ends with the chosen answer.

    Args:
        path: .jsonl, .jsonl.gz or .parquet file; None uses `hub`.
        hub: Name of a data set on the Hugging Face hub.
        subset: Its configuration; None if it has only one.
        split: Its split.
        seed: Seed of the order; None keeps the order of the data set.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        hub: str = "",
        subset: str | None = None,
        split: str = "train",
        seed: int | None = None,
    ) -> None:
        if path is None and not hub:
            raise UserError("no preference pairs: set path to a .jsonl or .parquet file, or hub to OWNER/NAME")
        super().__init__(path, hub, split, subset, seed)

    def _problem(self, row: Row) -> str | None:
        try:
            as_pair(row)
        except UserError as error:
            return str(error)
        return None

    def _conversation(self, row: Row) -> Conversation:
        return as_pair(row)


class TinyWorldPreferences(Preferences):
    """Pairs of the tiny world, which also define how other answers to their prompts are compared."""

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion is a correct answer to the prompt."""
        return judge({**conversation, "messages": conversation["messages"][:-1]}, completion, tool_calls)

    def grade(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> float:
        """Return 0 for a wrong answer, 1 for a right one, 2 for a right one in the preferred style."""
        if not self.evaluate(conversation, completion, tool_calls):
            return 0.0
        prefer = conversation.get("prefer")
        return 2.0 if prefer and judge({**conversation, "expect": prefer}, completion, tool_calls) else 1.0


def as_pair(row: Row) -> Conversation:
    """Return a record as the chosen conversation, with the rejected one under `rejected`, and its other fields."""
    prompt, *answers = (row.get(name) or "" for name in PAIR_FIELDS)
    for name, value in zip(PAIR_FIELDS, (prompt, *answers), strict=True):
        if not isinstance(value, str | list) or (not value and name != "prompt"):
            raise UserError(f"{name!r} must be text or a list of messages, got {short(row.get(name))}")
    if not prompt and all(isinstance(answer, str) for answer in answers):
        start = answers[0].rfind(" ", 0, common_length(*answers)) + 1  # whole words
        prompt, answers = answers[0][:start], [answer[start:] for answer in answers]
    chosen, rejected = (_whole(name, prompt, answer) for name, answer in zip(PAIR_FIELDS[1:], answers, strict=True))
    start = common_length(chosen, rejected)
    if any(len(messages) <= start or messages[start]["role"] != "assistant" for messages in (chosen, rejected)):
        raise UserError("'chosen' and 'rejected' must be different answers of the assistant to one prompt")
    others = {name: value for name, value in row.items() if name not in PAIR_FIELDS}
    return {**others, "messages": chosen, "rejected": rejected}


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of what both begin with; of two conversations it is the number of messages of the prompt."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))


def _whole(name: str, prompt: Any, answer: Any) -> list[dict[str, Any]]:
    """Return the whole conversation of an answer, which may repeat its prompt."""
    messages = _messages(answer, "assistant")
    first = messages[0] if isinstance(messages[0], dict) else {}
    if first.get("role", first.get("from")) in ANSWER_ROLES:
        if not prompt:
            raise UserError(f"{name!r} is an answer without a prompt; add the field 'prompt'")
        messages = _messages(prompt, "user") + messages
    try:
        conversation = as_conversation({"messages": messages})
    except UserError as error:
        raise UserError(f"{name}{error}") from None
    validate_conversation(conversation, name)
    return conversation["messages"]


def _messages(value: Any, role: str) -> list[Any]:
    return [{"role": role, "content": value.strip()}] if isinstance(value, str) else list(value)

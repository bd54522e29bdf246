"""Renders conversations to token ids with a loss mask, and parses completions into parts.

A conversation is `{"messages": [{"role": ..., "content": ...}, ...]}`: user and assistant in turn, after an optional
system message, which is merged into the first user message. Assistant content is a string or a list of parts `{"type":
"text" | "python" | "python_output", "text": ...}`. Text written by the assistant is trained on (loss mask 1); its
inputs (user turns, tool results and the tokens around them) are not.
"""

from collections.abc import Sequence
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.special_tokens import (
    ASSISTANT_END,
    ASSISTANT_START,
    OUTPUT_END,
    OUTPUT_START,
    PYTHON_END,
    PYTHON_START,
    USER_END,
    USER_START,
)
from nanochat_lit.tokenizer.tokenizer import Tokenizer

Conversation = dict[str, Any]
Part = dict[str, str]
PART_TYPES = ("text", "python", "python_output")


def validate_conversation(conversation: object, where: str = "conversation") -> None:
    """Raise UserError, prefixed with `where`, unless `conversation` has the format of this module."""
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list):
        raise UserError(f'{where}: expected {{"messages": [...]}}, got {short(conversation)}')
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(f'{where}: message {index} must be {{"role", "content"}}, got {short(message)}')
    has_system = bool(messages) and messages[0]["role"] == "system"
    if len(messages) <= has_system:
        raise UserError(f"{where}: has no user message")
    for index, message in enumerate(messages):
        turn = index - has_system
        expected = "system" if turn < 0 else ("user", "assistant")[turn % 2]
        if message["role"] != expected:
            raise UserError(
                f"{where}: message {index} has role {message['role']!r}, expected {expected!r} "
                "(user and assistant must alternate, after an optional system message)"
            )
        _check_content(message["content"], expected, f"{where}: message {index}")


def render_conversation(
    tokenizer: Tokenizer, conversation: Conversation, max_tokens: int | None = None
) -> tuple[list[int], list[int]]:
    """Return the token ids of a conversation and the loss mask, 1 for trained tokens.

    Args:
        tokenizer: Tokenizer to use.
        conversation: Conversation in the format of this module.
        max_tokens: Truncate both lists to this many tokens; None for no limit.

    Raises:
        UserError: If the conversation is malformed.
    """
    validate_conversation(conversation)
    special = tokenizer.special_ids
    token_ids = [tokenizer.bos_id]
    loss_mask = [0]

    def add(ids: list[int], trained: int) -> None:
        token_ids.extend(ids)
        loss_mask.extend([trained] * len(ids))

    for message in _merge_system(conversation["messages"]):
        if message["role"] == "user":
            add([special[USER_START], *tokenizer.encode(message["content"]), special[USER_END]], 0)
            continue
        add([special[ASSISTANT_START]], 0)
        for part in _parts(message["content"]):
            ids = tokenizer.encode(part["text"])
            if part["type"] == "text":
                add(ids, 1)
            elif part["type"] == "python":
                add([special[PYTHON_START], *ids, special[PYTHON_END]], 1)
            else:
                add([special[OUTPUT_START], *ids, special[OUTPUT_END]], 0)
        add([special[ASSISTANT_END]], 1)
    return token_ids[:max_tokens], loss_mask[:max_tokens]


def render_for_completion(tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
    """Return the prompt for the next assistant message.

    A final assistant message is removed, so that a training example becomes a prompt.
    """
    validate_conversation(conversation)
    messages = conversation["messages"]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    token_ids, _ = render_conversation(tokenizer, {"messages": messages})
    return [*token_ids, tokenizer.special_ids[ASSISTANT_START]]


def parse_completion(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[Part]:
    """Return the parts of one assistant message; the inverse of rendering it.

    Reads up to the end of the turn (assistant_end, bos or a user_start), or to the end of `token_ids`. Unbalanced part
    tokens do not raise an error, because model output is arbitrary: a part ends where the next begins.
    """
    special = tokenizer.special_ids
    opens = {special[PYTHON_START]: "python", special[OUTPUT_START]: "python_output"}
    closes = {special[PYTHON_END], special[OUTPUT_END]}
    ends = {special[ASSISTANT_END], special[USER_START], tokenizer.bos_id}
    parts: list[Part] = []
    kind = "text"
    pending: list[int] = []

    def close() -> None:
        if pending or kind != "text":
            parts.append({"type": kind, "text": tokenizer.decode(pending)})
            pending.clear()

    for token_id in token_ids:
        if token_id in ends:
            break
        if token_id in opens or token_id in closes:
            close()
            kind = opens.get(token_id, "text")
        elif token_id not in special.values():
            pending.append(token_id)
    close()
    return parts


def _check_content(content: object, role: str, where: str) -> None:
    if isinstance(content, str):
        return
    if role != "assistant" or not isinstance(content, list):
        allowed = "a string or a list of parts" if role == "assistant" else "a string"
        raise UserError(f"{where}: content of role {role!r} must be {allowed}, got {short(content)}")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in PART_TYPES or not isinstance(part.get("text"), str):
            raise UserError(
                f'{where}: part {index} must be {{"type": {" | ".join(PART_TYPES)}, "text": string}}, got {short(part)}'
            )


def _merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _parts(content: str | list[Part]) -> list[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text_of(content: str | list[Part]) -> str:
    """Return the text of a message's content, without calls and their results."""
    return "".join(part["text"] for part in _parts(content) if part["type"] == "text")


def short(value: object) -> str:
    """Return the beginning of a value, for errors."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""Conversations as others write them, in the format of `chat`: OpenAI's messages with tool calls, and ShareGPT's.

    OpenAI    {"messages": [{"role": "system" | "developer" | "user" | "assistant" | "tool", "content", "tool_calls"}]}
    ShareGPT  {"conversations": [{"from": "system" | "human" | "gpt" | "function_call" | "observation", "value"}]}

A tool call becomes a python part of the assistant's turn, its result a python_output part, and what the assistant says
after it belongs to the same turn. Of a call to python or the calculator the part is the code or expression, of others a
call as Python writes it, `weather(city="Paris")`. Definitions of tools beside the messages are not part of the text.
"""

import json
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.chat import Conversation, Part

INTERPRETERS = ("python", "calculator", "code_interpreter")
"""Tools whose only argument is what our own model would write."""
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "function_call": "call", "observation": "result", "tool": "result", "function": "result",
}  # fmt: skip
OPENAI_ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "result",
    "function": "result",
}  # fmt: skip


def as_conversation(row: dict[str, Any]) -> Conversation:
    """The row with `messages` in the format of `chat`; one that has it already is given back as it is.

    Raises:
        UserError: If it is of neither format, or has what cannot be expressed; it begins with ": message N".
    """
    if row.get("messages") is None and isinstance(row.get("conversations"), list):
        turns = [_sharegpt_turn(index, message) for index, message in enumerate(row["conversations"])]
        others = {key: value for key, value in row.items() if key not in ("messages", "conversations")}
        return {**others, "messages": _joined(turns)}
    messages = row.get("messages")
    if not isinstance(messages, list) or not any(map(_is_foreign, messages)):
        return row
    return {**row, "messages": _joined([_openai_turn(index, message) for index, message in enumerate(messages)])}


Turn = tuple[int, str, list[Part]]
"""Number of the message, role (result is that of a tool), and what is said."""


def _is_foreign(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    role, content = message.get("role"), message.get("content")
    is_listed = isinstance(content, list) and role != "assistant"
    others = any(message.get(key) is not None for key in ("tool_calls", "function_call", "weight", "refusal"))
    return role in ("developer", "tool", "function") or others or is_listed


def _openai_turn(index: int, message: Any) -> Turn:
    where = f": message {index}"
    role = OPENAI_ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None:
        known = ", ".join(OPENAI_ROLES)
        raise UserError(f'{where} must be {{"role", "content"}} with one of the roles {known}, got {_short(message)}')
    if message.get("weight") not in (None, 1):
        raise UserError(f"{where} has weight {message['weight']!r}; which messages are trained on cannot be chosen")
    parts = _openai_content(message.get("content"), where)
    calls = message.get("tool_calls") or []
    if message.get("function_call") is not None:
        calls = [*calls, {"function": message["function_call"]}]
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        parts.append({"type": "python", "text": _call_text(function, where)})
    if not parts and role == "assistant":
        raise UserError(f"{where} has neither content nor tool calls, got {_short(message)}")
    return index, role, parts


def _openai_content(content: Any, where: str) -> list[Part]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") not in ("text", "python", "python_output"):
            raise UserError(f"{where} has content that is not text: {_short(part)}")
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where} has a part without text: {_short(part)}")
    return [{"type": part["type"], "text": part["text"]} for part in parts]


def _sharegpt_turn(index: int, message: Any) -> Turn:
    where = f": message {index}"
    role = SHAREGPT_ROLES.get(str(message.get("from"))) if isinstance(message, dict) else None
    if role is None or not isinstance(message.get("value"), str):
        known = ", ".join(SHAREGPT_ROLES)
        raise UserError(f'{where} must be {{"from", "value"}} with one of the names {known}, got {_short(message)}')
    if role != "call":
        return index, role, [{"type": "text", "text": message["value"]}]
    try:
        function = json.loads(message["value"])
    except ValueError:
        function = None
    text = message["value"] if function is None else _call_text(function, where)
    return index, "assistant", [{"type": "python", "text": text}]


def _call_text(function: Any, where: str) -> str:
    """A call as the assistant would write it."""
    name = function.get("name") if isinstance(function, dict) else None
    arguments = function.get("arguments", {}) if isinstance(function, dict) else None
    try:
        arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except ValueError:
        raise UserError(f"{where} calls a tool with arguments that are not JSON: {_short(arguments)}") from None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UserError(f'{where} has a tool call without {{"name", "arguments"}}: {_short(function)}')
    values = list(arguments.values())
    if name in INTERPRETERS and len(values) == 1 and isinstance(values[0], str):
        return values[0]
    listed = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{name}({listed})"


def _joined(turns: list[Turn]) -> list[dict[str, Any]]:
    """Messages of system, user and assistant; calls, their results and what follows become one turn of the assistant."""
    messages: list[dict[str, Any]] = []
    is_open = False  # the assistant has called a tool, so that what follows is still its turn
    for index, role, parts in turns:
        if role == "result":
            if not is_open:
                raise UserError(f": message {index} is the result of a tool that nobody has called")
            messages[-1]["content"] += [{"type": "python_output", "text": part["text"]} for part in parts]
        elif role == "assistant" and is_open:
            messages[-1]["content"] += parts
        else:
            messages.append({"role": role, "content": list(parts)})
        is_open = messages[-1]["role"] == "assistant" and any(
            part["type"] == "python" for part in messages[-1]["content"]
        )
    return [{**message, "content": _simplified(message["content"])} for message in messages]


def _simplified(parts: list[Part]) -> str | list[Part]:
    """Text alone as a string, which is what users and systems say."""
    if any(part["type"] != "text" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""Conversion of other conversation formats to that of `chat`: OpenAI messages with tool calls, and ShareGPT.

    OpenAI    {"messages": [{"role": "system" | "developer" | "user" | "assistant" | "tool", "content", "tool_calls"}]}
    ShareGPT  {"conversations": [{"from": "system" | "human" | "gpt" | "function_call" | "observation", "value"}]}

A tool call becomes a python part of the assistant's turn, its result a python_output part; the assistant's following
text belongs to the same turn. The part of a call to python or the calculator is the code or expression; other calls are
written in Python syntax, `weather(city="Paris")`. Separate tool definitions are not part of the text. A separate system
prompt becomes the system message. Unsupported fields that would change the training, such as a weight of 0 or separate
reasoning, raise an error.
"""

import functools
import json
import logging
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.chat import Conversation, Part, short

INTERPRETERS = ("python", "calculator", "code_interpreter")
"""Tools whose only argument is code or an expression."""
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "function_call": "call", "observation": "result", "tool": "result", "function": "result",
}  # fmt: skip
OPENAI_ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "result",
    "function": "result",
}  # fmt: skip

TRAINED_FIELDS = (
    "weight", "sample_weight", "loss", "loss_weight", "loss_scale", "train", "training", "trainable", "is_trainable",
    "trained", "train_on", "train_on_turn", "learn", "compute_loss",
)  # fmt: skip
"""Fields that enable training on a message; only 1 or true is supported."""
MASK_FIELDS = (
    "mask", "masked", "loss_mask", "train_mask", "ignore", "ignore_loss", "no_loss", "completion_mask", "assistant_masks",
)  # fmt: skip
"""Fields that disable training on a message."""
OTHER_FIELDS = (
    "reasoning_content", "reasoning", "thinking", "thought", "train_detail", "training_detail", "prefix",
    "chat_template_kwargs", "image", "images", "image_url", "audio", "audios", "video", "videos", "chosen", "rejected",
)  # fmt: skip
"""Fields with text or training targets that the format cannot represent."""
ANSWER_FIELDS = ("response", "completion", "answer", "output", "target")
"""Fields next to messages that end with a question; other formats keep its answer there."""
SYSTEM_FIELDS = ("system", "system_prompt")
TOOL_FIELDS = ("tools", "functions")
ROW_FIELDS = (*SYSTEM_FIELDS, *ANSWER_FIELDS, *TOOL_FIELDS, *TRAINED_FIELDS, *MASK_FIELDS, *OTHER_FIELDS)
"""Fields next to the messages that are used."""
_NOTHING = (None, "", "[]", "{}", [], {})
ANSWER_ROLES = ("assistant", "gpt", "chatgpt", "function_call")
_CHECKED_FIELDS = {*TRAINED_FIELDS, *MASK_FIELDS, *OTHER_FIELDS}
_log = logging.getLogger(__name__)

Turn = tuple[int, str, list[Part]]
"""Index of the message, role (result for tools), and content."""


def as_conversation(row: dict[str, Any]) -> Conversation:
    """Return the record with `messages` in the format of `chat`; one in that format is returned unchanged.

    Raises:
        UserError: If the format is unknown or has unsupported contents; the message begins with ":".
    """
    name = "messages" if row.get("messages") else "conversations"
    messages = row.get(name)
    if not isinstance(messages, list):
        return row
    _check_fields(row, ": the record", is_answer=True)
    for index, message in enumerate(messages):
        if isinstance(message, dict):
            is_answer = (message.get("role") or message.get("from")) in ANSWER_ROLES
            parts = message.get("content")
            for values in (message, *(parts if isinstance(parts, list) else ())):
                if isinstance(values, dict):
                    _check_fields(values, f": message {index}", is_answer)
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    answer = next((field for field in ANSWER_FIELDS if row.get(field) not in _NOTHING), None)
    if answer is not None and (last.get("role") or last.get("from")) in ("user", "human"):
        raise UserError(f": the answer stands in {answer}, outside of {name}; append it to them, or remove the field")
    if any(row.get(field) not in _NOTHING for field in TOOL_FIELDS):
        _warn_of_tools()
    system = next((row[field] for field in SYSTEM_FIELDS if row.get(field) not in _NOTHING), None)
    if name == "messages" and system is None and not any(map(_is_foreign, messages)):
        return row
    joined = _joined([_turn(index, message, name) for index, message in enumerate(messages)])
    if system is not None:
        joined = _with_system(joined, system)
    others = {key: value for key, value in row.items() if key not in ("conversations", *SYSTEM_FIELDS)}
    return {**others, "messages": joined}


def _check_fields(values: dict[str, Any], where: str, is_answer: bool) -> None:
    """Raise UserError, which begins with `where`, for fields that request unsupported behavior.

    `is_answer` states whether the record or message is trained on.
    """
    for field, value in values.items():
        if field not in _CHECKED_FIELDS or value in _NOTHING or (field == "weight" and value == 1):
            continue
        if field in TRAINED_FIELDS and isinstance(value, bool | int | float) and value == is_answer:
            continue
        if field in MASK_FIELDS and value is False and is_answer:
            continue
        if field in OTHER_FIELDS:
            hint = "it would be ignored; move it into the content, or remove the field"
        else:
            hint = "training on selected messages is not supported; remove the others"
        raise UserError(f"{where} has {field} {short(value)}; {hint}")


@functools.cache
def _warn_of_tools() -> None:
    _log.warning("separate tool definitions are not part of the training text")


def _with_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    if not isinstance(system, str):
        raise UserError(f": the separate system prompt must be text, got {short(system)}")
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0]["content"] == system:
        return messages
    raise UserError(": has both a system message and a separate system prompt; keep one of them")


def _turn(index: int, message: Any, name: str) -> Turn:
    """Parse a message of either format: ShareGPT's column may have OpenAI messages, and vice versa."""
    is_sharegpt = "from" in message if isinstance(message, dict) else name == "conversations"
    return _sharegpt_turn(index, message) if is_sharegpt else _openai_turn(index, message)


def _is_foreign(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    role, content = message.get("role"), message.get("content")
    is_listed = isinstance(content, list) and role != "assistant"
    others = any(message.get(key) is not None for key in ("tool_calls", "function_call", "refusal", "from"))
    return role in ("developer", "tool", "function") or others or is_listed


def _openai_turn(index: int, message: Any) -> Turn:
    where = f": message {index}"
    role = OPENAI_ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None:
        known = ", ".join(OPENAI_ROLES)
        raise UserError(f'{where} must be {{"role", "content"}} with one of the roles {known}, got {short(message)}')
    parts = _openai_content(message.get("content"), where)
    calls = message.get("tool_calls") or []
    if message.get("function_call") is not None:
        calls = [*calls, {"function": message["function_call"]}]
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        parts.append({"type": "python", "text": _call_text(function, where)})
    if not parts and role == "assistant":
        raise UserError(f"{where} has neither content nor tool calls, got {short(message)}")
    return index, role, parts


def _openai_content(content: Any, where: str) -> list[Part]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") not in ("text", "python", "python_output"):
            raise UserError(f"{where} has content that is not text: {short(part)}")
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where} has a part without text: {short(part)}")
    return [{"type": part["type"], "text": part["text"]} for part in parts]


def _sharegpt_turn(index: int, message: Any) -> Turn:
    where = f": message {index}"
    role = SHAREGPT_ROLES.get(str(message.get("from"))) if isinstance(message, dict) else None
    if role is None or not isinstance(message.get("value"), str):
        known = ", ".join(SHAREGPT_ROLES)
        raise UserError(f'{where} must be {{"from", "value"}} with one of the names {known}, got {short(message)}')
    if role != "call":
        return index, role, [{"type": "text", "text": message["value"]}]
    try:
        function = json.loads(message["value"])
    except ValueError:
        function = None
    text = message["value"] if function is None else _call_text(function, where)
    return index, "assistant", [{"type": "python", "text": text}]


def _call_text(function: Any, where: str) -> str:
    name = function.get("name") if isinstance(function, dict) else None
    arguments = function.get("arguments", {}) if isinstance(function, dict) else None
    try:
        arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except ValueError:
        raise UserError(f"{where} calls a tool with arguments that are not JSON: {short(arguments)}") from None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UserError(f'{where} has a tool call without {{"name", "arguments"}}: {short(function)}')
    values = list(arguments.values())
    if name in INTERPRETERS and len(values) == 1 and isinstance(values[0], str):
        return values[0]
    listed = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{name}({listed})"


def _joined(turns: list[Turn]) -> list[dict[str, Any]]:
    """Join calls, their results and the following text into one assistant turn."""
    messages: list[dict[str, Any]] = []
    is_open = False  # after a tool call, the following messages belong to the assistant's turn
    for index, role, parts in turns:
        if role == "result":
            if not is_open:
                raise UserError(f": message {index} is the result of a tool that was not called")
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
    if any(part["type"] != "text" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)

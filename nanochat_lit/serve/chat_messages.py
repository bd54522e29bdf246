"""Converts OpenAI messages to the trained format, in which user and assistant alternate. Pure functions.

Other sequences of messages are mapped to it:

* Consecutive messages of one role are joined with an empty line.
* A system or developer message is prepended to the next user message, as in training, or appended to the last one.
* A leading assistant message is preceded by an empty user message.
* Calls of the client's functions are part of the assistant's text; their results (role tool) are user messages.
"""

import json
from collections.abc import Sequence
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.tool_format import parse_call, render_call, render_results
from nanochat_lit.serve.request_fields import bad_field, kind_of, short
from nanochat_lit.tokenizer import validate_conversation

MAX_MESSAGES = 500
MAX_MESSAGE_CHARS = 8_000
MAX_TOTAL_CHARS = 32_000
MAX_NAME_CHARS = 64

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}
# Fields that OpenAI's client sends back with an earlier answer; always empty here.
_EMPTY = ("refusal", "annotations", "audio", "function_call")
_OWN = ("nanochat", "tool_calls", "tool_call_id")
"""Fields of some roles."""


def as_messages(given: object, offer: str = "") -> list[dict[str, Any]]:
    """Return a request's messages in the tokenizer's format, ending with a user message.

    `offer` is text that offers functions to the model; it is added to the system message.

    Raises:
        ApiError: 400 with the field's name.
    """
    if not isinstance(given, list) or not given:
        raise bad_field("messages", "messages must be a list of at least one message")
    if len(given) > MAX_MESSAGES:
        raise bad_field("messages", f"{len(given)} messages; at most {MAX_MESSAGES} are allowed")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    _check_results(given)
    lengths = [_num_chars(message["content"]) for message in messages]
    for index, length in enumerate(lengths):
        if length > MAX_MESSAGE_CHARS:
            where = f"messages[{index}]"
            raise bad_field(where, f"{where} has {length} characters; at most {MAX_MESSAGE_CHARS} are allowed")
    if sum(lengths) > MAX_TOTAL_CHARS:
        raise bad_field(
            "messages", f"the messages have {sum(lengths)} characters; at most {MAX_TOTAL_CHARS} are allowed"
        )
    if messages[-1]["role"] == "assistant":
        raise bad_field("messages", "the last message is an assistant message; end with a user message")
    if offer:
        num_system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        messages.insert(num_system, {"role": "system", "content": offer})
    turns = _in_turn(messages)
    try:
        validate_conversation({"messages": turns}, "messages")
    except UserError as error:
        raise bad_field("messages", str(error)) from None
    return turns


def _in_turn(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"  # a system message is part of the user's turn
        if not turns and role == "assistant":
            turns.append({"role": "user", "content": ""})
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = _joined(turns[-1]["content"], message["content"])
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns


def _joined(first: Any, second: Any) -> Any:
    """Join two contents: strings or lists of parts."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}" if first and second else first or second
    parts = [[{"type": "text", "text": side}] if isinstance(side, str) else side for side in (first, second)]
    return [*parts[0], {"type": "text", "text": "\n\n"}, *parts[1]]


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad_field(where, f"{where} must be an object with role and content, not {kind_of(message)}")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_field(f"{where}.role", f"{where}.role must be one of {', '.join(_ROLES)}, not {short(role)}")
    own = {"assistant": ("nanochat", "tool_calls"), "tool": ("tool_call_id",)}.get(role, ())
    for name, value in message.items():
        if name in _EMPTY and value not in (None, [], {}, ""):
            raise bad_field(f"{where}.{name}", f"{where}.{name} is not supported by this server; remove it")
        if name in _OWN and name not in own and value not in (None, []):
            raise bad_field(f"{where}.{name}", f"{where}.{name} is not for {role} messages; remove it")
        if name not in ("role", "content", "name", *_OWN, *_EMPTY):
            raise bad_field(where, f"{where} has an unknown field {short(name)}; remove it")
    name = message.get("name")  # not part of the model's format
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME_CHARS):
        raise bad_field(f"{where}.name", f"{where}.name must be a string of at most {MAX_NAME_CHARS} characters")
    if role == "tool":
        result = _content(message.get("content"), f"{where}.content")
        return {"role": "user", "content": render_results([result])}
    calls = _calls(message.get("tool_calls") or [], f"{where}.tool_calls")
    if message.get("nanochat") is not None:
        content: Any = _parts(message["nanochat"], f"{where}.nanochat")
        return {"role": role, "content": [*content, {"type": "text", "text": calls}] if calls else content}
    has_text = not calls or message.get("content") is not None
    text = _content(message.get("content"), f"{where}.content") if has_text else ""
    return {"role": _ROLES[role], "content": text + calls}


def _calls(given: object, where: str) -> str:
    """Return the text of an assistant's calls."""
    if not isinstance(given, list):
        raise bad_field(where, f"{where} must be a list of calls, not {kind_of(given)}")
    texts = []
    for index, call in enumerate(given):
        function = call.get("function") if isinstance(call, dict) else None
        name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (0, 0)
        if not isinstance(name, str) or not isinstance(arguments, str):
            form = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
            raise bad_field(f"{where}[{index}]", f"{where}[{index}] must be {form}")
        parsed = parse_call(f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}')
        if parsed is None:
            raise bad_field(
                f"{where}[{index}]", f"{where}[{index}].function.arguments must be a JSON object as a string"
            )
        texts.append(render_call(parsed))
    return "".join(texts)


def _check_results(messages: Sequence[dict[str, Any]]) -> None:
    """Check that every result is of an earlier call."""
    known: set[str] = set()
    for index, message in enumerate(messages):
        known |= {str(call.get("id")) for call in message.get("tool_calls") or []}
        given = message.get("tool_call_id")
        if message["role"] == "tool" and not (isinstance(given, str) and given in known):
            where = f"messages[{index}].tool_call_id"
            raise bad_field(where, f"{where} is {short(given)}, which is not the id of an earlier call")


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(where, f"{where} must be a string or a list of text parts, not {kind_of(content)}")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise bad_field(
                where, f'{where} may contain only parts {{"type": "text", "text": ...}}, because the model is text-only'
            )
    return "".join(part["text"] for part in content)


def _parts(extension: object, where: str) -> list[dict[str, str]]:
    """Return the parts of an earlier answer; `validate_conversation` checks each part."""
    parts = extension.get("parts") if isinstance(extension, dict) else None
    if not isinstance(parts, list):
        raise bad_field(where, f"{where} must be {{'parts': [...]}}")
    return parts


def _num_chars(content: str | Sequence[Any]) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(str(part.get("text", ""))) if isinstance(part, dict) else 0 for part in content)

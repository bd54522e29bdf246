"""From the body of POST /v1/chat/completions to what the engine needs. Pure functions; every refusal is an ApiError.

Nothing is ignored silently: what has no effect here is either harmless by its meaning (`user`, `metadata`, ...) or refused.
Beyond OpenAI's fields: `top_k`, and in an assistant's message `nanochat`, the parts of an earlier answer as it was given.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from nanochat_lit.common.errors import UserError
from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.tokenizer import Tokenizer, render_for_completion, validate_conversation

MAX_MESSAGES = 500
MAX_MESSAGE_CHARS = 8_000
MAX_TOTAL_CHARS = 32_000
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 200
MAX_NEW_TOKENS = 4_096
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 100
MAX_USER_CHARS = 512
_MAX_SEED = 2**63

_USED = ("model", "messages", "stream", "stream_options", "temperature", "top_p", "top_k", "seed", "stop", "user", "n")
_LENGTHS = ("max_completion_tokens", "max_tokens")
# No effect on one answer of a text model, by their meaning.
_HARMLESS = ("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# Features that this server lacks, and the values that ask for none of it.
_REFUSED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("logprobs", (False,)),
    ("top_logprobs", ()),
    ("logit_bias", ({},)),
    ("presence_penalty", (0,)),
    ("frequency_penalty", (0,)),
    ("tools", ([],)),
    ("tool_choice", ("none", "auto")),
    ("functions", ([],)),
    ("function_call", ("none", "auto")),
    ("response_format", ({"type": "text"},)),
    ("modalities", (["text"],)),
    ("audio", ()),
    ("prediction", ()),
    ("reasoning_effort", ("none",)),
    ("verbosity", ("medium",)),
    ("web_search_options", ()),
)
# Of a message: what OpenAI's client sends back with an answer it has received; all of it empty here.
_EMPTY_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls", "name")


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request that has been understood."""

    messages: list[dict[str, Any]]
    """A conversation in the tokenizer's format, the last message the user's."""
    max_new_tokens: int
    """Longest answer in tokens."""
    temperature: float
    """0 is greedy."""
    top_p: float
    """Sample among the likeliest tokens that together have this probability."""
    top_k: int
    """Sample among this many likeliest tokens; 0 is all."""
    seed: int | None
    """None lets the server choose one."""
    stop: tuple[str, ...]
    """The answer ends before the first of these."""
    stream: bool
    """Whether to send the answer in parts."""
    include_usage: bool
    """Whether a streamed answer ends with its usage."""
    user: str
    """Who asks, as far as the client tells; users take turns."""


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises:
        ApiError: 400 if it is not a JSON object. NaN and infinities are no JSON.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and endless numbers
        raise ApiError(400, f"the body is not JSON in UTF-8: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, not {_kind(body)}", code="invalid_json")
    return body


def parse_chat_request(body: Mapping[str, Any], model_name: str, defaults: Mapping[str, Any]) -> ChatRequest:
    """Check every field of a request.

    Args:
        body: What `parse_json` gave.
        model_name: The one model that is served; a request may leave its name out.
        defaults: Of the export: temperature, top_k and max_new_tokens.

    Raises:
        ApiError: 404 for another model, 400 for everything else, with the field's name.
    """
    _check_fields(body, model_name)
    lengths = [name for name in _LENGTHS if body.get(name) is not None]
    if len(lengths) == 2:
        raise _bad("max_tokens", "give max_tokens or max_completion_tokens, not both")
    length = lengths[0] if lengths else "max_tokens"
    stream = _boolean(body, "stream")
    user = body.get("user")
    if user is not None and not (isinstance(user, str) and len(user) <= MAX_USER_CHARS):
        raise _bad("user", f"user must be a string of at most {MAX_USER_CHARS} characters")
    top_p = _number(body, "top_p", 1.0, 0, 1)
    if top_p == 0:
        raise _bad(
            "top_p", "top_p is 0, which leaves no token; use a number above 0, or temperature 0 for the likeliest"
        )
    return ChatRequest(
        messages=_messages(body.get("messages")),
        max_new_tokens=_integer(body, length, min(defaults["max_new_tokens"], MAX_NEW_TOKENS), 1, MAX_NEW_TOKENS),
        temperature=_number(body, "temperature", defaults["temperature"], 0, MAX_TEMPERATURE),
        top_p=top_p,
        top_k=_integer(body, "top_k", defaults["top_k"], 0, MAX_TOP_K),
        seed=None if body.get("seed") is None else _integer(body, "seed", 0, -_MAX_SEED, _MAX_SEED - 1),
        stop=_stop(body.get("stop")),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        user=user or "",
    )


def render_prompt(request: ChatRequest, tokenizer: Tokenizer, context: int) -> list[int]:
    """Token ids of the conversation, ready to be answered.

    Args:
        request: Its messages.
        tokenizer: The model's.
        context: The model's sequence_len.

    Raises:
        ApiError: 400 if it does not fit, or holds what UTF-8 cannot express.
    """
    try:
        prompt = render_for_completion(tokenizer, {"messages": request.messages})
    except UserError as error:
        raise _bad("messages", str(error)) from None
    if len(prompt) > context:
        raise ApiError(
            400,
            f"the messages have {len(prompt)} tokens and the model's context is {context}; send fewer or shorter ones",
            param="messages",
            code="context_length_exceeded",
        )
    return prompt


def _check_fields(body: Mapping[str, Any], model_name: str) -> None:
    model = body.get("model", model_name)
    if not isinstance(model, str):
        raise _bad("model", f"model must be a string, not {_kind(model)}")
    if model != model_name:
        message = f"the model {_short(model)} does not exist; this server has {model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    refused = dict(_REFUSED)
    for name, value in body.items():
        if name in refused:
            if value is not None and not any(_is_same(value, harmless) for harmless in refused[name]):
                raise _bad(name, f"{name} is not supported by this server; leave it out", "unsupported_parameter")
        elif name not in (*_USED, *_LENGTHS, *_HARMLESS):
            raise _bad(_short(name).strip("'"), f"unknown parameter {_short(name)}; leave it out", "unknown_parameter")
    if _integer(body, "n", 1, 1, 2**31) != 1:
        raise _bad("n", f"n is {body['n']}; this server gives one answer per request, ask several times")


def _messages(given: object) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise _bad("messages", "messages must be a list of at least one message")
    if len(given) > MAX_MESSAGES:
        raise _bad("messages", f"{len(given)} messages; at most {MAX_MESSAGES} are allowed")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    lengths = [_num_chars(message["content"]) for message in messages]
    for index, length in enumerate(lengths):
        if length > MAX_MESSAGE_CHARS:
            where = f"messages[{index}]"
            raise _bad(where, f"{where} has {length} characters; at most {MAX_MESSAGE_CHARS} are allowed")
    if sum(lengths) > MAX_TOTAL_CHARS:
        raise _bad("messages", f"the messages have {sum(lengths)} characters; at most {MAX_TOTAL_CHARS} are allowed")
    try:
        validate_conversation({"messages": messages}, "messages")
    except UserError as error:
        raise _bad("messages", str(error)) from None
    if messages[-1]["role"] != "user":
        raise _bad("messages", f"the last message must be the user's, not the {messages[-1]['role']}'s")
    return messages


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise _bad(where, f"{where} must be an object with role and content, not {_kind(message)}")
    role = message.get("role")
    if role == "developer":  # OpenAI's newer name
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise _bad(f"{where}.role", f"{where}.role must be system, user or assistant, not {_short(role)}")
    for name, value in message.items():
        if name not in ("role", "content", "nanochat", *_EMPTY_IN_MESSAGES):
            raise _bad(where, f"{where} has an unknown field {_short(name)}; leave it out")
        if name in _EMPTY_IN_MESSAGES and value not in (None, [], {}, ""):
            raise _bad(f"{where}.{name}", f"{where}.{name} is not supported by this server; leave it out")
    if message.get("nanochat") is not None:
        return {"role": role, "content": _parts(message["nanochat"], role, f"{where}.nanochat")}
    return {"role": role, "content": _content(message.get("content"), f"{where}.content")}


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _bad(where, f"{where} must be a string or a list of text parts, not {_kind(content)}")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _bad(where, f'{where} may hold parts {{"type": "text", "text": ...}} only: this model reads text')
    return "".join(part["text"] for part in content)


def _parts(extension: object, role: str, where: str) -> list[dict[str, str]]:
    """The parts of an earlier answer; `validate_conversation` checks them one by one."""
    parts = extension.get("parts") if isinstance(extension, dict) else None
    if role != "assistant" or not isinstance(parts, list):
        raise _bad(where, f"{where} belongs to assistant messages and looks like {{'parts': [...]}}")
    return parts


def _num_chars(content: str | Sequence[Any]) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(str(part.get("text", ""))) if isinstance(part, dict) else 0 for part in content)


def _stop(stop: object) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise _bad("stop", "stop must be a string or a list of strings, none of them empty")
    if len(strings) > MAX_STOP_STRINGS or any(len(string) > MAX_STOP_CHARS for string in strings):
        raise _bad("stop", f"stop takes at most {MAX_STOP_STRINGS} strings of at most {MAX_STOP_CHARS} characters")
    return tuple(strings)


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise _bad("stream_options", "stream_options is for streamed answers; leave it out or set stream to true")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise _bad("stream_options", 'stream_options must look like {"include_usage": true}')
    return _boolean(options, "include_usage")


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _bad(name, f"{name} must be true or false, not {_kind(value)}")
    return bool(value)


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad(name, f"{name} must be a number from {low:g} to {high:g}, not {_short(value)}")
    return _within(name, value, low, high)


def _integer(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(name, f"{name} must be a whole number from {low} to {high}, not {_short(value)}")
    return _within(name, value, low, high)


def _within(name: str, value: Any, low: float, high: float) -> Any:
    if not low <= value <= high:
        raise _bad(name, f"{name} is {_short(value)}; use {low} to {high}")
    return value


def _is_same(value: object, other: object) -> bool:
    """Equal as JSON is: true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _bad(param: str, message: str, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: object) -> str:
    """For messages; lone surrogates, which no response can carry, are escaped."""
    text = json.dumps(value) if isinstance(value, int | float) else ascii(value) if _is_odd(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_odd(value: object) -> bool:
    return not repr(value).isprintable()

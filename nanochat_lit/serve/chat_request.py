"""Parses the body of POST /v1/chat/completions. Pure functions; invalid requests raise ApiError.

An extension of OpenAI's fields: `nanochat` in an assistant message, the parts of an earlier answer.

In the trained format, user and assistant alternate. Other sequences of messages are mapped to it:

* Consecutive messages of one role are joined with an empty line.
* A system or developer message is prepended to the next user message, as in training, or appended to the last one.
* A leading assistant message is preceded by an empty user message.
* Calls of the client's functions are part of the assistant's text; their results (role tool) are user messages.

With tool_choice "required" or a named function, and wherever the answer has a format, constrained decoding makes the
calls match the functions' parameters. Otherwise the model is free to write anything, calls included.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanochat_lit.common.tool_format import (
    call_prefix,
    call_suffix,
    parse_call,
    render_call,
    render_results,
    render_tools,
)
from nanochat_lit.engine.grammar import json_rule
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.request_fields import (
    MAX_FORMAT_CHARS,
    MAX_TOP_LOGPROBS,
    Options,
    bad_field,
    boolean,
    check_fields,
    checked_grammar,
    errors_of,
    kind_of,
    parse_options,
    short,
    whole_number,
)
from nanochat_lit.tokenizer import Tokenizer, render_for_completion, validate_conversation

MAX_MESSAGES = 500
MAX_MESSAGE_CHARS = 8_000
MAX_TOTAL_CHARS = 32_000
MAX_NAME_CHARS = 64

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}
# Fields that OpenAI's client sends back with an earlier answer; always empty here.
_EMPTY = ("refusal", "annotations", "audio", "function_call")
_OWN = ("nanochat", "tool_calls", "tool_call_id")
"""Fields of some roles."""

MAX_TOOLS = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

_USED = ("messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls")
_REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Unsupported features, and their values that disable them."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The functions of a client."""

    functions: tuple[dict[str, Any], ...] = ()
    """With name, description and parameters; empty if none may be called."""
    max_calls: int | None = None
    """Maximum number of calls in an answer."""
    grammar: str = ""
    """Grammar of the answer; empty if the model is free."""

    @property
    def names(self) -> list[str]:
        """Names of the functions."""
        return [function["name"] for function in self.functions]


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Options):
    """A parsed request."""

    messages: list[dict[str, Any]]
    """Conversation in the tokenizer's format that ends with a user message; it begins with the functions' descriptions."""
    tools: Tools
    """Functions that the model may call."""


def parse_chat_request(body: Mapping[str, Any], model_name: str, defaults: SamplingParams) -> ChatRequest:
    """Check every field of a request; `defaults` are the export's, and the default seed is random.

    Raises:
        ApiError: 404 for another model, 400 for everything else, with the field's name.
    """
    check_fields(body, model_name, _USED, _REFUSED)
    logprobs, top_logprobs = boolean(body, "logprobs"), whole_number(body, "top_logprobs", 0, MAX_TOP_LOGPROBS, 0)
    if body.get("top_logprobs") is not None and not logprobs:
        raise bad_field("top_logprobs", "top_logprobs requires logprobs true; set it or remove top_logprobs")
    options = parse_options(body, defaults)
    tools = parse_tools(body, options["sampling"].grammar)
    options["sampling"] = replace(options["sampling"], grammar=tools.grammar)
    offer = render_tools(tools.functions) if tools.functions else ""
    messages = as_messages(body.get("messages"), offer)
    return ChatRequest(messages=messages, tools=tools, logprobs=logprobs, top_logprobs=top_logprobs, **options)


def render_prompt(request: ChatRequest, tokenizer: Tokenizer, context: int) -> list[int]:
    """Return the token ids of the prompt; raises ApiError (400) if it does not fit, or UTF-8 cannot encode it."""
    with errors_of("messages"):
        prompt = render_for_completion(tokenizer, {"messages": request.messages})
    if len(prompt) > context:
        message = (
            f"the messages have {len(prompt)} tokens, but the model's context is {context}; send fewer or shorter ones"
        )
        raise bad_field("messages", message, "context_length_exceeded")
    return prompt


def as_messages(given: object, offer: str = "") -> list[dict[str, Any]]:
    """Return a request's messages in the tokenizer's format, ending with a user message; raises ApiError (400).

    `offer` is text that offers functions to the model; it is added to the system message.
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
        total = f"the messages have {sum(lengths)} characters"
        raise bad_field("messages", f"{total}; at most {MAX_TOTAL_CHARS} are allowed")
    if messages[-1]["role"] == "assistant":
        raise bad_field("messages", "the last message is an assistant message; end with a user message")
    if offer:
        num_system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        messages.insert(num_system, {"role": "system", "content": offer})
    turns = _in_turn(messages)
    with errors_of("messages"):
        validate_conversation({"messages": turns}, "messages")
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


def parse_tools(body: Mapping[str, Any], answer: str) -> Tools:
    """Check the fields about functions; `answer` is the grammar of an answer without calls, empty for any.

    Raises:
        ApiError: 400 with the field's name.
    """
    functions = _functions(body.get("tools"))
    names = [function["name"] for function in functions]
    is_parallel = body.get("parallel_tool_calls") is None or boolean(body, "parallel_tool_calls")
    choice = body.get("tool_choice")
    is_auto = choice in (None, "auto")
    if choice == "none" or (is_auto and not functions):
        return Tools(grammar=answer)
    if answer and not is_auto:
        raise bad_field("tool_choice", 'tool_choice must be "auto" or "none" with an answer in a given format')
    if not is_auto and choice != "required":
        inner = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(name, str):
            form = '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
            raise bad_field("tool_choice", f"tool_choice must be {form}, not {short(choice)}")
        if name not in names:
            raise bad_field("tool_choice", f"tool_choice names {short(name)}, which is not among the tools")
        functions, is_parallel = [function for function in functions if function["name"] == name], False
    if not functions:
        raise bad_field("tool_choice", 'tool_choice "required" needs tools; add some')
    grammar = ""
    if answer or not is_auto:
        grammar = checked_grammar(lambda all_: _grammar(all_, is_parallel, answer), functions, "tools")
    return Tools(functions=tuple(functions), max_calls=None if is_parallel else 1, grammar=grammar)


def _functions(tools: object) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        given = f"{len(tools)} of them" if isinstance(tools, list) else kind_of(tools)
        raise bad_field("tools", f"tools must be a list of at most {MAX_TOOLS} functions, not {given}")
    functions = [_function(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    if len({function["name"] for function in functions}) < len(functions):
        raise bad_field("tools", "two tools have the same name; give each its own")
    if (size := len(json.dumps(functions))) > MAX_FORMAT_CHARS:
        raise bad_field("tools", f"the tools have {size} characters; at most {MAX_FORMAT_CHARS} are allowed")
    return functions


def _function(tool: object, where: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise bad_field(
            where, f'{where} must be {{"type": "function", "function": {{"name": ...}}}}, not {kind_of(tool)}'
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_field(
            f"{where}.function.name", f"{where}.function.name must match {_NAME.pattern}, not {short(name)}"
        )
    description, parameters = function.get("description") or "", function.get("parameters") or {}
    if not isinstance(description, str) or not isinstance(parameters, dict):
        raise bad_field(where, f"{where}.function must have a string as description and a JSON schema as parameters")
    return {"name": name, "description": description, "parameters": parameters}


def _grammar(functions: list[dict[str, Any]], is_parallel: bool, answer: str) -> str:
    """Return the grammar of calls, or of an answer, if its grammar is given."""
    calls = "call+" if is_parallel else "call"
    lines = [f"start: {calls} | answer" if answer else f"start: {calls}"]
    lines += [answer.replace("start:", "answer:", 1)] if answer else []
    lines.append("call: " + " | ".join(f"call_{number}" for number in range(len(functions))))
    for number, function in enumerate(functions):
        before, after = json.dumps(call_prefix(function["name"])), json.dumps(call_suffix())
        lines.append(f"call_{number}: {before} arguments_{number} {after}")
        # one schema per function, because references are relative to its root
        schema = {"type": "object", **function["parameters"]} if function["parameters"] else _NO_PARAMETERS
        lines.append(f"arguments_{number}: {json_rule(schema)}")
    return "\n".join(lines)

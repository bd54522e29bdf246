"""POST /v1/responses: OpenAI's Responses API, mapped onto chat completions. Pure functions; invalid requests raise ApiError.

Stateless: nothing is stored, so a client sends the earlier messages and calls of a conversation itself. Calculator calls
are not reported. A stream has OpenAI's typed events, without [DONE].
"""

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_request import ChatRequest, parse_chat_request
from nanochat_lit.serve.chat_response import ChatWriter
from nanochat_lit.serve.messages import Update
from nanochat_lit.serve.request_fields import ApiError, bad_field, kind_of, short

_SAME = (
    *("model", "stream", "temperature", "top_p", "top_k", "min_p", "seed", "user", "parallel_tool_calls", "metadata"),
    *("service_tier", "safety_identifier", "prompt_cache_key", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "structured_outputs", "stop", "logit_bias"),
)
_MAPPED = ("input", "instructions", "max_output_tokens", "text", "tools", "tool_choice")
_REFUSED: dict[str, tuple[Any, ...]] = {
    "store": (False,), "previous_response_id": (), "conversation": (), "background": (False,), "include": ([],),
    "reasoning": (), "truncation": ("disabled",), "prompt": (), "max_tool_calls": (), "top_logprobs": (0,),
    "stream_options": (),
}  # fmt: skip
"""Unsupported fields, and their values that disable them."""
_STATE = ("store", "previous_response_id", "conversation", "background")
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    ".function.": ".",
}


def parse_response_request(body: Mapping[str, Any], model_name: str, defaults: SamplingParams) -> ChatRequest:
    """Check every field of a request; arguments and errors are those of `parse_chat_request`."""
    for name, value in body.items():
        if name in _REFUSED and value is not None and value not in _REFUSED[name]:
            reason = "this server stores no responses; send all messages in input and " if name in _STATE else ""
            raise bad_field(name, f"{name} is not supported: {reason}remove it", "unsupported_parameter")
        if name not in (*_SAME, *_MAPPED, *_REFUSED):
            raise bad_field(short(name).strip("'"), f"unknown parameter {short(name)}; remove it", "unknown_parameter")
    chat = {name: body[name] for name in _SAME if name in body} | {"messages": _messages(body)}
    chat["max_completion_tokens"] = body.get("max_output_tokens")
    chat["response_format"] = _format(body.get("text"))
    chat["tools"] = _tools(body.get("tools"))
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    chat["tool_choice"] = choice
    with own_names():
        return replace(parse_chat_request(chat, model_name, defaults), include_usage=True)


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Errors inside name the fields of this API."""
    try:
        yield
    except ApiError as error:
        message, param = str(error), error.param or ""
        for name, own in _NAMES.items():
            message, param = message.replace(name, own), param.replace(name, own)
        raise ApiError(error.status, message, param=param or None, code=error.code) from None


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    given, instructions = body.get("input"), body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise bad_field("instructions", f"instructions must be a string, not {kind_of(instructions)}")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise bad_field("input", "input must be a string or a list of at least one item")
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _text(item.get("content"))})
        elif kind == "function_call":
            function = {name: item.get(name) for name in ("name", "arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = _text(item.get("output"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        else:
            kinds = "message, function_call or function_call_output"
            raise bad_field(where, f"{where} must be an item of type {kinds}, not {short(kind)}")
    return messages


def _text(content: object) -> object:
    """Return content with parts of chat completions."""
    if not isinstance(content, list):
        return content
    kinds = ("input_text", "output_text")
    is_text = [isinstance(part, dict) and part.get("type") in kinds for part in content]
    return [
        {"type": "text", "text": part.get("text")} if ok else part for part, ok in zip(content, is_text, strict=True)
    ]


def _format(text: object) -> object:
    if text is None:
        return None
    if (
        not isinstance(text, dict)
        or set(text) - {"format", "verbosity"}
        or text.get("verbosity") not in (None, "medium")
    ):
        raise bad_field("text", 'text must be {"format": {"type": ...}}')
    given = text.get("format")
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def _tools(tools: object) -> object:
    if not isinstance(tools, list):
        return tools
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else tool
            raise bad_field(f"tools[{index}]", f"tools[{index}] must be of type function, not {short(kind)}")
    return [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in tools]


@dataclass
class ResponseWriter(ChatWriter):
    """Writes an answer as a response."""

    body: Mapping[str, Any] = field(default_factory=dict)
    """The request, whose settings a response repeats."""
    object = "response"
    event_object = "response"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []  # finished items of a stream
        self._open: dict[str, Any] | None = None  # the message being streamed
        self._finish_reason: str | None = None

    def choice(self, answer: Update) -> dict[str, Any]:
        """Take in the finished answer, for `whole`."""
        parts, calls = self._split(answer.parts, is_last=True)
        text = "".join(part for kind, part in parts if kind == "text")
        self._finish_reason = answer.finish_reason
        self._output = [_message(text)] if text or not calls else []
        self._output += [_call(call) for call in calls]
        return {}

    def whole(self, choices: Sequence[dict[str, Any]], counts: dict[str, int]) -> dict[str, Any]:  # noqa: ARG002
        """Return the response."""
        status = "incomplete" if self._finish_reason == "length" else "completed"
        return self._response(status, counts)

    def start(self) -> str:
        """Return the first events."""
        return "".join(
            self._typed(f"response.{kind}", response=self._response("in_progress"))
            for kind in ("created", "in_progress")
        )

    def events(self, update: Update) -> str:
        """Return the events of an update."""
        parts, calls = self._split(update.parts, is_last=update.finish_reason is not None)
        text = "".join(part for kind, part in parts if kind == "text")
        written = self._delta_of(text) if text else ""
        if calls:
            written += self._close()
        for call in calls:
            item = _call(call)
            place = {"item_id": item["id"], "output_index": len(self._output)}
            arguments = "response.function_call_arguments"
            written += self._item("added", {**item, "arguments": "", "status": "in_progress"})
            written += self._typed(f"{arguments}.delta", **place, delta=item["arguments"])
            written += self._typed(f"{arguments}.done", **place, name=item["name"], arguments=item["arguments"])
            written += self._item("done", item)
        if update.finish_reason:
            self._finish_reason = update.finish_reason
            if self._open is None and not self._output:  # an empty answer is a message, too
                written += self._delta_of("")
            written += self._close()
        return written

    def end(self, counts: dict[str, int] | None) -> str:
        """Return the last event, with the whole response."""
        response = self.whole([], counts or {})
        return self._typed(f"response.{response['status']}", response=response)

    def _delta_of(self, text: str) -> str:
        written = ""
        if self._open is None:
            self._open = _message("")
            written += self._item("added", {**self._open, "content": [], "status": "in_progress"})
            written += self._typed("response.content_part.added", **self._place(), part=self._open["content"][0])
        self._open["content"][0]["text"] += text
        return written + self._typed("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def _close(self) -> str:
        if self._open is None:
            return ""
        item, part = self._open, self._open["content"][0]
        written = self._typed("response.output_text.done", **self._place(), text=part["text"], logprobs=[])
        written += self._typed("response.content_part.done", **self._place(), part=part)
        self._open = None
        return written + self._item("done", item)

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._output), "content_index": 0}

    def _item(self, what: str, item: dict[str, Any]) -> str:
        written = self._typed(f"response.output_item.{what}", output_index=len(self._output), item=item)
        self._output += [item] if what == "done" else []
        return written

    def _typed(self, kind: str, **fields: Any) -> str:
        self._number += 1
        data = {"type": kind, "sequence_number": self._number - 1, **fields}
        return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"

    def _response(self, status: str, counts: Mapping[str, int] | None = None) -> dict[str, Any]:
        repeated = {
            name: self.body.get(name) for name in ("instructions", "max_output_tokens", "temperature", "top_p", "user")
        }
        defaults = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}}
        repeated |= {
            name: value if self.body.get(name) is None else self.body[name] for name, value in defaults.items()
        }
        response = {
            "id": self.head["id"], "object": "response", "created_at": self.head["created"], "model": self.head["model"],
            "status": status, "error": None, "output": list(self._output), "previous_response_id": None, "store": False,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "text": self.body.get("text") or {"format": {"type": "text"}}, "truncation": "disabled", "usage": None,
        }  # fmt: skip
        if counts:
            response["usage"] = {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            }
        return response | repeated


def _message(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "id": _id("msg"), "role": "assistant", "status": "completed", "content": content}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function_call", "id": _id("fc"), "call_id": call["id"], "status": "completed", **call["function"]}


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"

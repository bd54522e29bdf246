"""Parses the body of POST /v1/chat/completions. Pure functions; invalid requests raise ApiError.

An extension of OpenAI's fields: `nanochat` in an assistant message, the parts of an earlier answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.tool_format import render_tools
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_messages import as_messages
from nanochat_lit.serve.request_fields import (
    MAX_TOP_LOGPROBS,
    ApiError,
    Options,
    bad_field,
    boolean,
    check_fields,
    parse_options,
    whole_number,
)
from nanochat_lit.serve.tool_request import Tools, parse_tools
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

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
    """Return the token ids of the prompt.

    Raises:
        ApiError: 400 if it does not fit, or contains characters that UTF-8 cannot encode.
    """
    try:
        prompt = render_for_completion(tokenizer, {"messages": request.messages})
    except UserError as error:
        raise bad_field("messages", str(error)) from None
    if len(prompt) > context:
        raise ApiError(
            400,
            f"the messages have {len(prompt)} tokens, but the model's context is {context}; send fewer or shorter ones",
            param="messages",
            code="context_length_exceeded",
        )
    return prompt

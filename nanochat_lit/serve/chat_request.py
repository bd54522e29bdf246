"""Parses the body of POST /v1/chat/completions. Pure functions; invalid requests raise ApiError.

Fields without effect are ignored only if they cannot change the answer (`user`, `metadata`, ...); others are rejected.
Extensions of OpenAI's fields: `top_k`, `min_p`, `repetition_penalty` and `structured_outputs` (as in vLLM), and
`nanochat` in an assistant message, the parts of an earlier answer.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import MAX_BIAS, MAX_SEED, SamplingParams
from nanochat_lit.serve.answer_format import answer_grammar
from nanochat_lit.serve.api_error import ApiError, bad_field, kind_of, short
from nanochat_lit.serve.chat_messages import as_messages
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

MAX_DEPTH = 32
"""Maximum nesting depth of objects and lists."""
MAX_NEW_TOKENS = 4_096
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 100
MAX_USER_CHARS = 512
MAX_BIASED_TOKENS = 300
MAX_TOP_LOGPROBS = 20
_LIMITS = {"temperature": 2.0, "top_k": 200, "max_new_tokens": MAX_NEW_TOKENS}
"""Upper limits of sampling parameters per request, in addition to those of `SamplingParams`."""

_NUMBERS = (
    *("temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_USED = (
    *("model", "messages", "stream", "stream_options", "stop", "user", "n"),
    *("logit_bias", "logprobs", "top_logprobs", "response_format", "structured_outputs", *_NUMBERS),
)
_LENGTHS = ("max_completion_tokens", "max_tokens")
# These fields cannot change a single answer of a text model.
_HARMLESS = ("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# Unsupported features, and their values that disable them.
_REFUSED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("tools", ([],)),
    ("tool_choice", ("none", "auto")),
    ("functions", ([],)),
    ("function_call", ("none", "auto")),
    ("modalities", (["text"],)),
    ("audio", ()),
    ("prediction", ()),
    ("reasoning_effort", ("none",)),
    ("verbosity", ("medium",)),
    ("web_search_options", ()),
)


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A parsed request."""

    messages: list[dict[str, Any]]
    """Conversation in the tokenizer's format that ends with a user message."""
    sampling: SamplingParams
    """Sampling parameters."""
    stream: bool
    """Whether to stream the answer."""
    include_usage: bool
    """Whether a streamed answer ends with the usage."""
    user: str
    """User name given by the client, for fair scheduling."""
    logprobs: bool
    """Whether to report the log-probability of each token."""
    top_logprobs: int
    """How many of the most likely tokens to report at each place."""


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse the JSON object of a body.

    Raises:
        ApiError: 400 if it is not a JSON object; NaN and infinities are rejected.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # includes invalid UTF-8 and overlong numbers
        raise ApiError(400, f"the body is not JSON in UTF-8: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, not {kind_of(body)}", code="invalid_json")
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    if level:
        raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep; send fewer levels", code="invalid_json")
    return body


def parse_chat_request(body: Mapping[str, Any], model_name: str, defaults: SamplingParams) -> ChatRequest:
    """Check every field of a request.

    Args:
        body: Result of `parse_json`.
        model_name: Name of the served model; optional in requests.
        defaults: Default parameters of the export; the default seed is random.

    Raises:
        ApiError: 404 for another model, 400 for everything else, with the field's name.
    """
    _check_fields(body, model_name)
    stream = _boolean(body, "stream")
    user = body.get("user")
    if user is not None and not (isinstance(user, str) and len(user) <= MAX_USER_CHARS):
        raise bad_field("user", f"user must be a string of at most {MAX_USER_CHARS} characters")
    return ChatRequest(
        messages=as_messages(body.get("messages")),
        sampling=_sampling(body, defaults),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        user=user or "",
        logprobs=_boolean(body, "logprobs"),
        top_logprobs=_top_logprobs(body),
    )


def render_prompt(request: ChatRequest, tokenizer: Tokenizer, context: int) -> list[int]:
    """Return the token ids of the prompt.

    Args:
        request: The parsed request.
        tokenizer: Tokenizer of the model.
        context: Context length of the model.

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


def _check_fields(body: Mapping[str, Any], model_name: str) -> None:
    model = body.get("model", model_name)
    if not isinstance(model, str):
        raise bad_field("model", f"model must be a string, not {kind_of(model)}")
    if model != model_name:
        message = f"the model {short(model)} does not exist; this server has {model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    refused = dict(_REFUSED)
    for name, value in body.items():
        if name in refused:
            if value is not None and not any(_is_same(value, harmless) for harmless in refused[name]):
                raise bad_field(name, f"{name} is not supported by this server; remove it", "unsupported_parameter")
        elif name not in (*_USED, *_LENGTHS, *_HARMLESS):
            raise bad_field(short(name).strip("'"), f"unknown parameter {short(name)}; remove it", "unknown_parameter")
    if body.get("n") is not None and not _is_same(body["n"], 1):
        raise bad_field(
            "n", f"n is {short(body['n'])}; this server returns one answer per request; send several requests"
        )


def _sampling(body: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    given = {name: body[name] for name in _NUMBERS if body.get(name) is not None}
    lengths = [name for name in _LENGTHS if body.get(name) is not None]
    if len(lengths) == 2:
        raise bad_field("max_tokens", "give max_tokens or max_completion_tokens, not both")
    if lengths:
        given["max_new_tokens"] = body[lengths[0]]
    sampling = replace(
        defaults,
        max_new_tokens=min(defaults.max_new_tokens, MAX_NEW_TOKENS),
        seed=secrets.randbits(31),
        stop=_stop(body.get("stop")),
        logit_bias=_logit_bias(body.get("logit_bias")),
        grammar=answer_grammar(body),
    )
    for name, value in given.items():
        param = lengths[0] if name == "max_new_tokens" else name
        try:
            sampling = sampling.updated({name: value})
        except UserError as error:
            raise bad_field(param, str(error).replace(name, param)) from None
        if getattr(sampling, name) > _LIMITS.get(name, MAX_SEED):
            raise bad_field(param, f"{param} is {short(value)}; this server allows at most {_LIMITS[name]:g}")
    return sampling


def _stop(stop: object) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise bad_field("stop", "stop must be a string or a list of strings, none of them empty")
    if len(strings) > MAX_STOP_STRINGS or any(len(string) > MAX_STOP_CHARS for string in strings):
        raise bad_field("stop", f"stop takes at most {MAX_STOP_STRINGS} strings of at most {MAX_STOP_CHARS} characters")
    return tuple(strings)


def _logit_bias(bias: object) -> tuple[tuple[int, float], ...]:
    if bias is None:
        return ()
    form = (
        f'logit_bias must be an object of token ids and amounts from -{MAX_BIAS} to {MAX_BIAS}, such as {{"123": -100}}'
    )
    if not isinstance(bias, dict) or len(bias) > MAX_BIASED_TOKENS:
        raise bad_field("logit_bias", f"{form}, of at most {MAX_BIASED_TOKENS} tokens")
    for token, amount in bias.items():
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not (token.isdecimal() and len(token) <= 9) or not is_number or not -MAX_BIAS <= amount <= MAX_BIAS:
            raise bad_field("logit_bias", f"{form}; got {short(token)}: {short(amount)}")
    return tuple((int(token), float(amount)) for token, amount in bias.items())


def _top_logprobs(body: Mapping[str, Any]) -> int:
    count = body.get("top_logprobs")
    if count is None:
        return 0
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_TOP_LOGPROBS:
        raise bad_field(
            "top_logprobs", f"top_logprobs is {short(count)}; use a whole number from 0 to {MAX_TOP_LOGPROBS}"
        )
    if not body.get("logprobs"):
        raise bad_field("top_logprobs", "top_logprobs requires logprobs true; set it or remove top_logprobs")
    return count


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise bad_field("stream_options", "stream_options requires stream true; remove it or set stream to true")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise bad_field("stream_options", 'stream_options must be {"include_usage": true} or false')
    return _boolean(options, "include_usage")


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, f"{name} must be true or false, not {kind_of(value)}")
    return bool(value)


def _is_same(value: object, other: object) -> bool:
    """Compare JSON values; true differs from 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other

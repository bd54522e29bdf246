"""Fields that requests share, parsing of JSON, and the API's errors. Pure functions; invalid requests raise ApiError.

Fields without effect are ignored only if they cannot change the answer (`user`, `metadata`, ...); others are rejected.
Extensions of OpenAI's fields: `top_k`, `min_p`, `repetition_penalty` and `structured_outputs`, as in vLLM.
"""

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NoReturn, TypeGuard

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.grammar import check_grammar, choice_grammar, json_grammar, regex_grammar
from nanochat_lit.engine.sampling_params import MAX_BIAS, MAX_SEED, Request, SamplingParams

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


@dataclass(eq=False)
class ApiError(Exception):
    """An error response."""

    status: int
    message: str
    """The value, the limit and the fix."""
    _: KW_ONLY
    param: str | None = None
    """Invalid field of the request."""
    code: str | None = None
    """Machine-readable code."""
    retry_after_s: int | None = None
    """Value of the Retry-After header, seconds."""

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON body of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Return the additional headers of the response."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def bad_field(param: str, message: str, code: str | None = None) -> ApiError:
    """Return an error with status 400 for a field of the request."""
    return ApiError(400, message, param=param, code=code)


@contextlib.contextmanager
def errors_of(param: str, prefix: str = "") -> Iterator[None]:
    """UserErrors inside become errors with status 400 for a field of the request."""
    try:
        yield
    except UserError as error:
        raise bad_field(param, f"{prefix}{error}") from None


def kind_of(value: object) -> str:
    """Return the JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def short(value: object) -> str:
    """Format a value for messages; escapes lone surrogates, which cannot be encoded, and omits nested values."""
    if isinstance(value, dict | list):
        return kind_of(value)
    text = json.dumps(value) if isinstance(value, int | float) else repr(value)
    text = text if text.isprintable() else ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


MAX_FORMAT_CHARS = 32_000
"""Maximum size of a schema or an expression, as JSON; compiling a larger one would delay other answers."""

_KINDS = {"json": json_grammar, "regex": regex_grammar, "choice": choice_grammar}
_FORMS = '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'


def answer_grammar(body: Mapping[str, Any]) -> str:
    """Return the grammar of the answer to a request; empty if it demands no format.

    Raises:
        ApiError: 400 if a format is malformed, unsupported or too large, or llguidance is not installed.
    """
    grammars = [
        _of_response_format(body.get("response_format")),
        _of_structured_outputs(body.get("structured_outputs")),
    ]
    if all(grammars):
        raise bad_field("structured_outputs", "give response_format or structured_outputs, not both")
    return grammars[0] or grammars[1]


def checked_grammar(make: Any, given: Any, param: str) -> str:
    """Return the grammar that `make` writes of the format given in the field `param`; raises as `answer_grammar`."""
    if (size := len(json.dumps(given))) > MAX_FORMAT_CHARS:
        raise bad_field(param, f"{param} has {size} characters; at most {MAX_FORMAT_CHARS} are allowed")
    with errors_of(param, f"{param}: "):
        grammar = make(given)
        check_grammar(grammar)
    return grammar


def _of_response_format(given: object) -> str:
    kind = given.get("type") if isinstance(given, dict) else None
    if given is None or given == {"type": "text"}:
        return ""
    if given == {"type": "json_object"}:
        return checked_grammar(json_grammar, {"type": "object"}, "response_format")
    inner = given.get("json_schema") if isinstance(given, dict) and kind == "json_schema" else None
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise bad_field("response_format", f"response_format must be {_FORMS}, not {short(given)}")
    return checked_grammar(json_grammar, inner["schema"], "response_format")


def _of_structured_outputs(given: object) -> str:
    if given is None:
        return ""
    found = [name for name in given if given[name] is not None] if isinstance(given, dict) else []
    is_right = len(found) == 1 and found[0] in _KINDS
    value: Any = given[found[0]] if is_right and isinstance(given, dict) else None
    types = {"json": dict, "regex": str, "choice": list}
    if not is_right or not isinstance(value, types[found[0]]):
        form = '{"json": SCHEMA}, {"regex": PATTERN} or {"choice": [TEXT, ...]}'
        got = f"an object with {', '.join(map(short, found)) or 'no key'}" if isinstance(given, dict) else short(given)
        raise bad_field("structured_outputs", f"structured_outputs must be {form}, not {got}")
    if found[0] == "choice" and not (value and all(isinstance(text, str) and text for text in value)):
        raise bad_field("structured_outputs", "structured_outputs.choice must be a list of strings, none of them empty")
    return checked_grammar(_KINDS[found[0]], value, "structured_outputs")


MAX_DEPTH = 32
"""Maximum nesting depth of objects and lists."""
MAX_NEW_TOKENS = 4_096
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 100
MAX_USER_CHARS = 512
MAX_BIASED_TOKENS = 300
MAX_TOP_LOGPROBS = 20
MAX_ANSWERS = 16
_LIMITS = {"temperature": 2.0, "top_k": 200, "max_new_tokens": MAX_NEW_TOKENS}
"""Upper limits of sampling parameters per request, in addition to those of `SamplingParams`."""

_NUMBERS = (
    *("temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_LENGTHS = ("max_completion_tokens", "max_tokens")
_USED = (
    *("model", "stream", "stream_options", "stop", "user", "n", "logprobs", "logit_bias"),
    *("response_format", "structured_outputs", *_NUMBERS, *_LENGTHS),
)
# These fields cannot change a single answer of a text model.
_HARMLESS = ("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Fields of every request."""

    sampling: SamplingParams
    """Sampling parameters."""
    n: int
    """Number of answers to each prompt."""
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

    def requests(self, prompt: Sequence[int], **more: Any) -> list[Request]:
        """Return the engine's requests for the answers to a prompt."""
        fields = {**vars(self.sampling), "logprobs": self.logprobs, "top_logprobs": self.top_logprobs, **more}
        return [Request(prompt_ids=prompt, sample=sample, **fields) for sample in range(self.n)]


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse the JSON object of a body; raises ApiError (400) if it is something else, or has NaN or infinities."""

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


def check_fields(
    body: Mapping[str, Any], model_name: str, used: Sequence[str], refused: Mapping[str, tuple[Any, ...]]
) -> None:
    """Check the names of the fields, and the model's, which is optional; raises ApiError (404 for another model).

    `used` are fields in addition to those of `Options`; `refused` are unsupported ones, with the values that disable
    them.
    """
    model = body.get("model", model_name)
    if not isinstance(model, str):
        raise bad_field("model", f"model must be a string, not {kind_of(model)}")
    if model != model_name:
        message = f"the model {short(model)} does not exist; this server has {model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    for name, value in body.items():
        if name in refused:
            if value is not None and not any(is_same(value, off) for off in refused[name]):
                raise bad_field(name, f"{name} is not supported by this server; remove it", "unsupported_parameter")
        elif name not in (*used, *_USED, *_HARMLESS):
            raise bad_field(short(name).strip("'"), f"unknown parameter {short(name)}; remove it", "unknown_parameter")


def parse_options(body: Mapping[str, Any], defaults: SamplingParams) -> dict[str, Any]:
    """Return the fields of `Options`, except for the log-probabilities; the default seed is random.

    Raises:
        ApiError: 400 with the field's name.
    """
    stream = boolean(body, "stream")
    user = body.get("user")
    if user is not None and not (isinstance(user, str) and len(user) <= MAX_USER_CHARS):
        raise bad_field("user", f"user must be a string of at most {MAX_USER_CHARS} characters")
    return {
        "sampling": _sampling(body, defaults),
        "n": whole_number(body, "n", 1, MAX_ANSWERS, default=1),
        "stream": stream,
        "include_usage": _include_usage(body.get("stream_options"), stream),
        "user": user or "",
    }


def whole_number(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """Return a field that is a whole number in a range; `default` if it is null or absent."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise bad_field(name, f"{name} is {short(value)}; use a whole number from {low} to {high}")
    return value


def boolean(body: Mapping[str, Any], name: str) -> bool:
    """Return a field that is true or false; false if it is null or absent."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, f"{name} must be true or false, not {kind_of(value)}")
    return bool(value)


def are_token_ids(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of integers."""
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def is_same(value: object, other: object) -> bool:
    """Compare JSON values; true differs from 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


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


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise bad_field("stream_options", "stream_options requires stream true; remove it or set stream to true")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise bad_field("stream_options", 'stream_options must be {"include_usage": true} or false')
    return boolean(options, "include_usage")

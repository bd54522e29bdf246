"""Parses the format that a request demands of its answer: OpenAI's `response_format` and vLLM's `structured_outputs`.

Pure functions; invalid formats raise ApiError.
"""

import json
from collections.abc import Mapping
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.grammar import check_grammar, choice_grammar, json_grammar, regex_grammar
from nanochat_lit.serve.api_error import bad_field, short

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
    """Return the grammar that `make` writes of a given format.

    Args:
        make: Function from a format to a grammar.
        given: The format.
        param: Field of the request that it is from.

    Raises:
        ApiError: 400 as `answer_grammar`.
    """
    if (size := len(json.dumps(given))) > MAX_FORMAT_CHARS:
        raise bad_field(param, f"{param} has {size} characters; at most {MAX_FORMAT_CHARS} are allowed")
    try:
        grammar = make(given)
        check_grammar(grammar)
    except UserError as error:
        raise bad_field(param, f"{param}: {error}") from None
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

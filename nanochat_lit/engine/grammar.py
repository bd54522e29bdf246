"""Constrained decoding: answers that match a JSON schema, a regular expression or one of several texts.

A grammar is a text in llguidance's dialect of Lark. Its parser reads the answer as bytes and reports, before each token,
which tokens of the vocabulary continue it (Willard and Louf 2023. https://arxiv.org/abs/2307.09702); the others get no
probability. The end of the turn is allowed once the answer is complete. Other control tokens never are, so the model
makes no calculator calls. https://github.com/guidance-ai/llguidance
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from nanochat_lit.common.errors import UserError, missing_package
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes: a small model can otherwise spend its answer on line breaks."""


_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose value is an object of schemas."""


def json_rule(schema: dict[str, Any]) -> str:
    """Return the right side of a rule for the JSON values of a schema.

    Objects have no properties but the declared ones, unless the schema mentions others: such values match, too, and a
    small model can otherwise spend its answer on properties that it invents.
    """
    closed = schema if '"allOf"' in json.dumps(schema) else _closed(schema)  # allOf joins properties
    return f"%json {json.dumps({**closed, 'x-guidance': _SPACING})}"


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    is_open = "properties" not in schema or "patternProperties" in schema
    changed: dict[str, Any] = {} if is_open else {"additionalProperties": False}
    for key, value in schema.items():
        if key in _OF_SCHEMAS and isinstance(value, dict):
            changed[key] = {name: _closed(inner) for name, inner in value.items()}
        else:
            changed[key] = value if key in ("enum", "const", "default", "examples") else _closed(value)
    return changed


def json_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of the JSON values of a JSON schema; see `json_rule`."""
    return f"start: {json_rule(schema)}"


def regex_grammar(pattern: str) -> str:
    """Return the grammar of the texts that a regular expression (Rust's dialect, without look-around) matches wholly."""
    return f"start: /{_llguidance().regex_to_lark(pattern, '')}/"


def choice_grammar(choices: Sequence[str]) -> str:
    """Return the grammar of some texts."""
    return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, choices))  # one terminal, for thousands of texts


def check_grammar(grammar: str) -> None:
    """Check that a grammar is valid; raises UserError if it is not, is too complex, or llguidance is not installed."""
    is_wrong, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if is_wrong:
        raise UserError(_one_line(messages[0]))


class GrammarParsers:
    """Makes llguidance's parsers for the vocabulary of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> Any:  # takes a third of a second for 32,768 tokens
        return _llguidance().LLTokenizer(_Vocabulary(self._tokenizer))

    def parser(self, grammar: str) -> Any:
        """Return an LLMatcher at the beginning of an answer; raises UserError as `check_grammar`."""
        matcher = _llguidance().LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(_one_line(matcher.get_error()))
        return matcher


def _llguidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise missing_package("an answer in a given format", "llguidance", "serve") from None
    return llguidance


class _Vocabulary:
    """The tokens as llguidance expects them; control tokens have names, which no text matches."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.special_token_ids = list(tokenizer.special_ids.values())
        self.eos_token_id = tokenizer.special_ids[ASSISTANT_END]
        self.tokens = [tokenizer.bytes_of(token_id) for token_id in range(tokenizer.vocab_size)]
        for name, token_id in tokenizer.special_ids.items():
            self.tokens[token_id] = name.encode()

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _one_line(message: str) -> str:
    """Return a message of llguidance without the place in a grammar that the user has not written."""
    message = re.split(r"\n +\d+ \|", re.sub(r"^(at )?\d+\(\d+\): ", "", message))[0]
    return " ".join(message.split())[:300]

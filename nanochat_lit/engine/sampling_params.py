"""Sampling settings and their validation.

HTTP requests, the chat page, the terminal's /set, an export's generation.json and Python calls all use
`SamplingParams`, so that the same values are valid everywhere.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.functions import Functions

MAX_SEED = 2**63
MAX_STOP_STRINGS = 16
MAX_BIAS = 100

RULES = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Settings that change logits; off by default."""

_WHOLE = ("top_k", "max_new_tokens", "seed")
# minimum, maximum, and the hint of the error message
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0, 100, "use 0 (greedy) to 100, such as 0.6"),
    "top_k": (0, 2**31 - 1, "use 0 (off) or the number of most likely tokens to sample from"),
    "top_p": (5e-324, 1, "use 1 (off) or a cumulative probability, such as 0.9"),
    "min_p": (0, 1, "use 0 (off) or a share of the highest probability, such as 0.05"),
    "repetition_penalty": (0.01, 100, "use 1 (off) or a factor, such as 1.1"),
    "presence_penalty": (-2, 2, "use 0 (off), or -2 to 2"),
    "frequency_penalty": (-2, 2, "use 0 (off), or -2 to 2"),
    "max_new_tokens": (1, 2**31 - 1, "use at least 1"),
    "seed": (-MAX_SEED, MAX_SEED - 1, "use an integer of at most 64 bits"),
}


FAILED = "error"
"""finish_reason of a request that cannot be continued; others continue."""
NOT_FINITE = (
    "the model's logits for this request are not finite: its weights may be damaged, or its compute_dtype too narrow"
)
TOO_COMPLEX = "the format of this answer is too complex for its parser; use a simpler schema or regular expression"


def check_prompt(prompt: Sequence[int], context: int, vocab_size: int) -> None:
    """Raise UserError if a prompt is empty, has invalid token ids, or exceeds the context."""
    if not prompt:
        raise UserError("the prompt is empty; begin it with the tokenizer's bos_id")
    if len(prompt) > context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, but the model's context is {context}; shorten the prompt"
        )
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise UserError(
            f"the prompt's token ids range from {min(prompt)} to {max(prompt)}, the model's from 0 to {vocab_size - 1}; "
            "encode it with the model's own tokenizer"
        )


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling settings; types and ranges are validated.

    Raises:
        UserError: If a value has the wrong type (true and "1" are not 1) or is out of range.
    """

    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 or None disables the limit."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together reach this probability; 1 disables the limit."""
    min_p: float = 0.0
    """Sample only from tokens that are at least this share as likely as the most likely one; 0 disables the limit."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens in the prompt and the answer; 1 disables it."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer; 0 disables it."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time it is in the answer; 0 disables it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and what is added to its logit, -100 to 100."""
    max_new_tokens: int = 256
    """Maximum length of a completion, tokens, including tool results."""
    seed: int = 0
    """Sampling seed; the tokens do not depend on concurrent requests."""
    stop: tuple[str, ...] = ()
    """Stop strings; the answer ends before the first one in its text."""
    grammar: str = ""
    """Grammar that the answer matches, from `json_grammar`, `regex_grammar` or `choice_grammar`; empty for any answer."""

    def __post_init__(self) -> None:
        if self.top_k is None:
            object.__setattr__(self, "top_k", 0)
        for name in _RANGES:
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        stop = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(text, str) and text for text in stop):
            raise UserError(f"stop must contain non-empty strings; got {_shown(stop)}")
        if len(stop) > MAX_STOP_STRINGS:
            raise UserError(f"stop has {len(stop)} strings; use at most {MAX_STOP_STRINGS}")
        if any(not -MAX_BIAS <= amount <= MAX_BIAS for _, amount in self.logit_bias):
            raise UserError(f"logit_bias has amounts outside -{MAX_BIAS} to {MAX_BIAS}; use smaller ones")

    def changed(self, name: str, text: str) -> "SamplingParams":
        """Return a copy with one setting changed from text; raises UserError if its name or value is invalid."""
        if name not in _RANGES:
            raise UserError(f"unknown setting {name!r}; use {', '.join(_RANGES)}")
        value: Any = text
        for kind in (int, float):
            try:
                value = kind(text)
                break
            except ValueError:
                continue
        return dataclasses.replace(self, **{name: value})

    def updated(self, values: Mapping[str, Any]) -> "SamplingParams":
        """Return a copy with some settings replaced (None keeps one); raises UserError if one is unknown or invalid."""
        if unknown := sorted(set(values) - set(_RANGES)):
            raise UserError(f"unknown setting {unknown[0]!r}; use {', '.join(_RANGES)}")
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})

    def numbers(self) -> dict[str, float]:
        """Return the numeric settings by name."""
        return {name: getattr(self, name) for name in _RANGES}


@dataclass(frozen=True, kw_only=True)
class Request(SamplingParams):
    """One completion of one prompt."""

    prompt_ids: Sequence[int]
    """Token ids of the prompt, beginning with the tokenizer's bos_id."""
    sample: int = 0
    """Index among several samples of the same seed."""
    logprobs: bool = False
    """Whether to report the log-probability of each token (at temperature 1, in nats)."""
    top_logprobs: int = 0
    """With logprobs, how many of the most likely tokens to report at each place."""
    prompt_logprobs: bool = False
    """Whether to report the same for the tokens of the prompt, from its second on."""
    functions: Functions | None = None
    """Functions that the model may call in the answer."""
    start_ids: Sequence[int] = ()
    """Tokens that the answer starts with; the model does not sample them."""


def _checked(name: str, value: Any) -> float:
    low, high, hint = _RANGES[name]
    is_whole = name in _WHOLE
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and is_whole and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON writers may write 50.0
    if not is_number or (is_whole and isinstance(value, float)):
        raise UserError(f"{name} is {_shown(value)}, not a {'whole ' if is_whole else ''}number; {hint}")
    if not low <= value <= high:  # also rejects NaN and integers beyond the range of float
        raise UserError(f"{name} is {_shown(value)}; {hint}")
    return value if is_whole else float(value)


def _shown(value: Any) -> str:
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of over 40 digits"
    return text if len(text) <= 60 else text[:57] + "..."


CHAT_PARAMS = SamplingParams(temperature=0.6, top_k=50)
"""Default sampling settings of a chat, unless the export has others."""

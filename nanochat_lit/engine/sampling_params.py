"""How a completion is generated: the one set of sampling settings, with the one check of them.

Requests over HTTP, the page's controls, the terminal's /set, an export's generation.json and calls from Python all become a
`SamplingParams`, so that a value is allowed everywhere or nowhere.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_lit.common.errors import UserError

MAX_SEED = 2**63
MAX_STOP_STRINGS = 16

_WHOLE = ("top_k", "max_new_tokens", "seed")
# lowest, highest, and what the message says is allowed
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0, 100, "use 0 (the most likely token) to 100, such as 0.6"),
    "top_k": (0, 2**31 - 1, "use 0 (off) or the number of most likely tokens to choose from"),
    "top_p": (5e-324, 1, "use 1 (off) or the share of probability to choose from, such as 0.9"),
    "max_new_tokens": (1, 2**31 - 1, "use at least 1"),
    "seed": (-MAX_SEED, MAX_SEED - 1, "use a whole number of at most 64 bits"),
}


FAILED = "error"
"""The finish_reason of a request whose logits are not finite; others go on."""
NOT_FINITE = (
    "the model's output for this request is not finite: its weights may be damaged, or its compute_dtype too narrow"
)


def check_prompt(prompt: Sequence[int], context: int, vocab_size: int) -> None:
    """Refuse a prompt that cannot be completed.

    Args:
        prompt: Its tokens.
        context: The model's sequence_len.
        vocab_size: Its vocabulary.

    Raises:
        UserError: If it is empty, foreign or longer than the context.
    """
    if not prompt:
        raise UserError("the prompt is empty; begin it with the tokenizer's bos_id")
    if len(prompt) > context:
        raise UserError(f"the prompt has {len(prompt)} tokens and the model's context is {context}; shorten the prompt")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise UserError(
            f"the prompt's token ids run from {min(prompt)} to {max(prompt)}, the model's from 0 to {vocab_size - 1}; "
            "encode it with the model's own tokenizer"
        )


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling settings; types and ranges are checked when made.

    Raises:
        UserError: If a value has another type (true is not 1, nor "1") or is out of range.
    """

    temperature: float = 0.0
    """0 takes the most likely token, higher is more varied."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 is all, as is None."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability; 1 is all."""
    max_new_tokens: int = 256
    """Longest completion in tokens, tool results included."""
    seed: int = 0
    """The same seed gives the same tokens, whatever else is running."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these that its text would contain."""

    def __post_init__(self) -> None:
        if self.top_k is None:
            object.__setattr__(self, "top_k", 0)
        for name in _RANGES:
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        stop = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(text, str) and text for text in stop):
            raise UserError(f"stop must hold strings, none of them empty; got {_shown(stop)}")
        if len(stop) > MAX_STOP_STRINGS:
            raise UserError(f"stop has {len(stop)} strings; use at most {MAX_STOP_STRINGS}")

    def changed(self, name: str, text: str) -> "SamplingParams":
        """A copy with one setting changed, as a person types it.

        Args:
            name: A numeric setting.
            text: Its value.

        Raises:
            UserError: If the setting is unknown, or its value is not allowed.
        """
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
        """A copy with some settings replaced; None leaves one as it is.

        Raises:
            UserError: If a name is unknown, or a value is not allowed.
        """
        if unknown := sorted(set(values) - set(_RANGES)):
            raise UserError(f"unknown setting {unknown[0]!r}; use {', '.join(_RANGES)}")
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})

    def numbers(self) -> dict[str, float]:
        """The numeric settings by name."""
        return {name: getattr(self, name) for name in _RANGES}


@dataclass(frozen=True, kw_only=True)
class Request(SamplingParams):
    """One completion of one prompt."""

    prompt_ids: Sequence[int]
    """The prompt's tokens; it begins with the tokenizer's bos_id."""
    sample: int = 0
    """Which of several samples of the same seed this is."""
    logprobs: bool = False
    """Whether to report the log-probability of each token (at temperature 1, in nats)."""


def _checked(name: str, value: Any) -> float:
    low, high, hint = _RANGES[name]
    is_whole = name in _WHOLE
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and is_whole and isinstance(value, float) and value.is_integer():
        value = int(value)  # 50.0 of a JSON writer
    if not is_number or (is_whole and isinstance(value, float)):
        raise UserError(f"{name} is {_shown(value)}, not a {'whole ' if is_whole else ''}number; {hint}")
    if not low <= value <= high:  # also NaN, and integers that no float holds
        raise UserError(f"{name} is {_shown(value)}; {hint}")
    return value if is_whole else float(value)


def _shown(value: Any) -> str:
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of over 40 digits"
    return text if len(text) <= 60 else text[:57] + "..."


CHAT_PARAMS = SamplingParams(temperature=0.6, top_k=50)
"""What a chat begins with, unless its export says otherwise."""

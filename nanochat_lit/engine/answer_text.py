"""Incremental conversion of an answer's tokens to text, calculator calls and results, with stop strings."""

from collections.abc import Sequence
from typing import NamedTuple

from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import OUTPUT_END, OUTPUT_START, PYTHON_END, PYTHON_START


class Piece(NamedTuple):
    """A chunk of an answer."""

    type: str
    """text, python (a calculator call) or python_output (its result)."""
    text: str
    """Text of complete characters."""


class TokenScore(NamedTuple):
    """Log-probability of a token, in nats at temperature 1."""

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]
    """Ids and log-probabilities of the most likely tokens at its place."""


class AnswerText:
    """Converts the tokens of one answer to chunks of text as soon as they are final.

    Buffers incomplete UTF-8 characters, and text that may be the beginning of a stop string. Control tokens are never
    part of the text. Stop strings are matched only in the text, not in calculator calls.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        special = tokenizer.special_ids
        self._opens = {special[PYTHON_START]: "python", special[OUTPUT_START]: "python_output"}
        self._closes = (special[PYTHON_END], special[OUTPUT_END])
        self._decoder = tokenizer.stream_decoder()
        self._stop = tuple(stop)
        self._kind = "text"
        self._held = ""
        self.has_stopped = False
        """Whether a stop string was found; text after it is dropped."""

    def push(self, token_id: int) -> list[Piece]:
        """Return the chunks that this token completes, often none."""
        switches = token_id in self._opens or token_id in self._closes
        pieces = self._add(self._decoder.finish() if switches else self._decoder.push(token_id), is_last=switches)
        if switches:
            self._kind = self._opens.get(token_id, "text")
        return pieces

    def finish(self) -> list[Piece]:
        """Return the buffered text at the end of the answer."""
        return self._add(self._decoder.finish(), is_last=True)

    def _add(self, text: str, *, is_last: bool) -> list[Piece]:
        if self.has_stopped:
            return []
        if self._kind == "text" and self._stop:
            text = self._held + text
            first = first_stop(text, self._stop)
            if first is not None:
                self.has_stopped, self._held = True, ""
                text = text[:first]
            else:
                kept = 0 if is_last else held_back(text, self._stop)
                text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        return [Piece(self._kind, text)] if text else []


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return the start of the stop string that is completed first (the longest of several), or None.

    The stop string with the earliest start may still be incomplete when another one is complete, so a streamed answer
    must end at the latter.
    """
    found = [(place + len(string), place) for string in stop if (place := text.find(string)) >= 0]
    return min(found)[1] if found else None


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return the number of characters at the end of the text that may begin a stop string."""
    longest = min(len(text), max(map(len, stop)) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)

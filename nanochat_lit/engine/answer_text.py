"""From the tokens of an answer to text that can be shown at once: words, calculator calls, their results, stop strings."""

from collections.abc import Sequence
from typing import NamedTuple

from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import OUTPUT_END, OUTPUT_START, PYTHON_END, PYTHON_START


class Piece(NamedTuple):
    """A few characters of an answer."""

    type: str
    """text, python (what the model hands to the calculator) or python_output (what came back)."""
    text: str
    """Whole characters only."""


class AnswerText:
    """Turns the tokens of one answer into pieces of text as soon as they are certain.

    Half a UTF-8 character waits for its other half, and text that may be the beginning of a stop string waits until it is
    one or is not. Control tokens are never part of the text.

    Args:
        tokenizer: Of the model that answers.
        stop: Strings before which the answer ends; only its text counts, not calculator calls.
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
        """Whether a stop string was met; nothing after it is text."""

    def push(self, token_id: int) -> list[Piece]:
        """The pieces that became certain with this token, often none."""
        switches = token_id in self._opens or token_id in self._closes
        pieces = self._add(self._decoder.finish() if switches else self._decoder.push(token_id), is_last=switches)
        if switches:
            self._kind = self._opens.get(token_id, "text")
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, when no more tokens come."""
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
    """Where the stop string begins that is whole first, the longest of several that are; None if there is none.

    The first to begin may still lack its end when another is whole, so it cannot be what ends an answer that streams.
    """
    found = [(place + len(string), place) for string in stop if (place := text.find(string)) >= 0]
    return min(found)[1] if found else None


def held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    longest = min(len(text), max(map(len, stop)) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)

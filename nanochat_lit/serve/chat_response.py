"""Answers in OpenAI's chat completions format. Pure functions.

`content` contains only text. Calculator calls and results are in the extension `nanochat`, which other clients ignore.
A streamed answer has one part {"type": "python" | "python_output", "text": ...} per delta. A complete answer has all
parts in order, including text, in {"parts": [...]}.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_lit.engine.answer_text import Piece


@dataclass
class AnswerParts:
    """Accumulates the parts of an answer."""

    num_tokens: int = 0
    finish_reason: str | None = None
    parts: list[Piece] = field(default_factory=list)

    def add(self, parts: Sequence[Piece]) -> None:
        """Take in more; neighbours of one type become one part."""
        self.parts = join_parts([*self.parts, *parts])


def join_parts(parts: Sequence[Piece]) -> list[Piece]:
    """The same with neighbours of one type joined."""
    joined: list[Piece] = []
    for kind, text in parts:
        if joined and joined[-1].type == kind:
            joined[-1] = Piece(kind, joined[-1].text + text)
        else:
            joined.append(Piece(kind, text))
    return joined


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    """Return token counts; completion tokens include calculator results and control tokens except the last."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


def completion(head: dict[str, Any], answer: AnswerParts, num_prompt: int) -> dict[str, Any]:
    """Return a complete answer.

    Args:
        head: id, created and model.
        answer: The finished answer.
        num_prompt: Number of prompt tokens.
    """
    content = "".join(text for kind, text in answer.parts if kind == "text")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if any(kind != "text" for kind, _ in answer.parts):
        message["nanochat"] = {"parts": [{"type": kind, "text": text} for kind, text in answer.parts]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage(num_prompt, answer.num_tokens),
        "system_fingerprint": None,
    }


class ChunkWriter:
    """Writes the events of one streamed answer.

    Everything except the text of an event is constant for an answer and is serialized once.

    Args:
        head: id, created and model.
        include_usage: End the stream with the usage; it is null in the other chunks, as in OpenAI's API.
    """

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._head = {**head, "object": "chat.completion.chunk", "system_fingerprint": None}
        self._tail = {"usage": None} if include_usage else {}
        self._before, self._after = self._chunk({"content": _PLACE}, None).split(json.dumps(_PLACE), 1)

    def start(self) -> str:
        """Return the first event, with the role."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def parts(self, parts: Sequence[Piece]) -> str:
        """An event per part."""
        return "".join(
            f"{self._before}{json.dumps(text)}{self._after}"
            if kind == "text"
            else self._chunk({"nanochat": {"type": kind, "text": text}}, None)
            for kind, text in join_parts(parts)
        )

    def end(self, finish_reason: str, counts: dict[str, int]) -> str:
        """Return the last events."""
        text = self._chunk({}, finish_reason)
        if self._tail:
            text += event({**self._head, "choices": [], "usage": counts})
        return text + "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({"choices": [choice], **self._head, **self._tail})


_PLACE = "\0text\0"
"""Placeholder of an event's text. The model's name may contain it too, but comes later in an event."""


def event(data: dict[str, Any]) -> str:
    """Format a server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"

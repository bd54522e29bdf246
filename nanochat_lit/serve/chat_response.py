"""Answers in the shape of OpenAI's chat completions. Pure functions.

`content` is text alone. What the model handed to its calculator, and what came back, is in the extension `nanochat`: in a
streamed answer one part {"type": "python" | "python_output", "text": ...} per delta, in a whole one all parts in order under
{"parts": [...]}, those of type "text" too. Clients that do not know it see an answer without it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Part = tuple[str, str]
"""(type, text) with the type text, python or python_output."""


@dataclass
class AnswerParts:
    """An answer that grows."""

    num_tokens: int = 0
    finish_reason: str | None = None
    parts: list[Part] = field(default_factory=list)

    def add(self, parts: Sequence[Part]) -> None:
        """Take in more; neighbours of one type become one part."""
        self.parts = join_parts([*self.parts, *parts])


def join_parts(parts: Sequence[Part]) -> list[Part]:
    """The same with neighbours of one type joined."""
    joined: list[Part] = []
    for kind, text in parts:
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    """Token counts; the completion's are all that the model or its calculator wrote, control tokens but the last included."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


def completion(head: dict[str, Any], answer: AnswerParts, num_prompt: int) -> dict[str, Any]:
    """A whole answer.

    Args:
        head: id, created and model.
        answer: The answer, finished.
        num_prompt: Tokens of the prompt.
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

    All of an event but its text is the same for a whole answer, so it is written once.

    Args:
        head: id, created and model.
        include_usage: Whether the stream ends with the usage; the other chunks say null then, as OpenAI's do.
    """

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._head = {**head, "object": "chat.completion.chunk", "system_fingerprint": None}
        self._tail = {"usage": None} if include_usage else {}
        self._before, self._after = self._chunk({"content": _PLACE}, None).split(json.dumps(_PLACE), 1)

    def start(self) -> str:
        """The first event, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def parts(self, parts: Sequence[Part]) -> str:
        """An event per part."""
        return "".join(
            f"{self._before}{json.dumps(text)}{self._after}"
            if kind == "text"
            else self._chunk({"nanochat": {"type": kind, "text": text}}, None)
            for kind, text in join_parts(parts)
        )

    def end(self, finish_reason: str, counts: dict[str, int]) -> str:
        """The last events."""
        text = self._chunk({}, finish_reason)
        if self._tail:
            text += event({**self._head, "choices": [], "usage": counts})
        return text + "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({"choices": [choice], **self._head, **self._tail})


_PLACE = "\0text\0"
"""Stands where an event's text will be. A model's name, which comes later in an event, may hold it, too."""


def event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"

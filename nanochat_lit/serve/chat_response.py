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
from nanochat_lit.serve.messages import TokenScore, Update
from nanochat_lit.tokenizer import Tokenizer


@dataclass
class AnswerParts:
    """Accumulates the parts of an answer."""

    num_tokens: int = 0
    finish_reason: str | None = None
    parts: list[Piece] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)

    def add(self, update: Update) -> None:
        """Take in more; neighbours of one type become one part."""
        self.parts = join_parts([*self.parts, *update.parts])
        self.scores += update.scores
        self.num_tokens += update.num_tokens
        self.finish_reason = update.finish_reason


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


class TokenNames:
    """Writes log-probabilities as OpenAI's API does: a token by its text and its bytes.

    Args:
        tokenizer: Tokenizer of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = {token_id: name for name, token_id in tokenizer.special_ids.items()}

    def logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """Return the field `logprobs` of some tokens."""
        content = [
            {
                **self._one(score.token_id, score.logprob),
                "top_logprobs": [self._one(token_id, logprob) for token_id, logprob in score.top],
            }
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _one(self, token_id: int, logprob: float) -> dict[str, Any]:
        if token_id in self._control:
            return {"token": self._control[token_id], "logprob": logprob, "bytes": None}
        raw = self._tokenizer.bytes_of(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


def completion(
    head: dict[str, Any], answer: AnswerParts, num_prompt: int, names: TokenNames | None = None
) -> dict[str, Any]:
    """Return a complete answer.

    Args:
        head: id, created and model.
        answer: The finished answer.
        num_prompt: Number of prompt tokens.
        names: Given if log-probabilities were requested.
    """
    content = "".join(text for kind, text in answer.parts if kind == "text")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if any(kind != "text" for kind, _ in answer.parts):
        message["nanochat"] = {"parts": [{"type": kind, "text": text} for kind, text in answer.parts]}
    logprobs = names.logprobs(answer.scores) if names else None
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}
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
        names: Given if log-probabilities were requested.
    """

    def __init__(self, head: dict[str, Any], include_usage: bool, names: TokenNames | None = None) -> None:
        self._names = names
        self._head = {**head, "object": "chat.completion.chunk", "system_fingerprint": None}
        self._tail = {"usage": None} if include_usage else {}
        self._before, self._after = self._chunk({"content": _PLACE}, None).split(json.dumps(_PLACE), 1)

    def start(self) -> str:
        """Return the first event, with the role."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def scores(self, scores: Sequence[TokenScore]) -> str:
        """Return an event with the log-probabilities of tokens, whose text may be in a later one."""
        return self._chunk({"content": ""}, None, self._names.logprobs(scores)) if self._names and scores else ""

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

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None, logprobs: dict[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event({"choices": [choice], **self._head, **self._tail})


_PLACE = "\0text\0"
"""Placeholder of an event's text. The model's name may contain it too, but comes later in an event."""


def event(data: dict[str, Any]) -> str:
    """Format a server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"

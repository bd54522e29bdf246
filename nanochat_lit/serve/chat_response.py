"""Answers in OpenAI's chat completions format, whole or as events. Pure functions.

`content` contains only text. Calculator calls and results are in the extension `nanochat`, which other clients ignore.
A streamed answer has one part {"type": "python" | "python_output", "text": ...} per delta. A complete answer has all
parts in order, including text, in {"parts": [...]}.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from nanochat_lit.common.tool_format import CallParser, ToolCall
from nanochat_lit.engine.answer_text import Piece, TokenScore
from nanochat_lit.serve.chat_request import Tools
from nanochat_lit.serve.messages import Update, join_parts
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    """Return token counts; completion tokens include calculator results and control tokens except the last."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


class TokenNames:
    """Writes log-probabilities as OpenAI's API does: a token by its text and its bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = {token_id: name for name, token_id in tokenizer.special_ids.items()}
        self._ends = (tokenizer.special_ids[ASSISTANT_END], tokenizer.bos_id)

    def chat_logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """Return the field `logprobs` of /v1/chat/completions, without the end token."""
        content = [
            {
                **self._one(score.token_id, score.logprob),
                "top_logprobs": [self._one(token_id, logprob) for token_id, logprob in score.top],
            }
            for score in scores
            if score.token_id not in self._ends
        ]
        return {"content": content, "refusal": None}

    def text_logprobs(self, scores: Sequence[TokenScore | int], offset: int) -> tuple[dict[str, Any], int]:
        """Return the field `logprobs` of /v1/completions, and the place in the text after the last token.

        `scores` has the id of a prompt's first token, which has none; `offset` is the place of the first one's text.
        """
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for score in scores:
            token_id = score if isinstance(score, int) else score.token_id
            tokens.append(self.text_of(token_id))
            offsets.append(offset)
            offset += 0 if token_id in self._control else len(tokens[-1])
            if isinstance(score, int):
                logprobs.append(None)
                tops.append(None)
                continue
            logprobs.append(score.logprob)
            top: dict[str, float] = {}
            for other, logprob in [*score.top, (token_id, score.logprob)]:  # several tokens may have one text
                top[self.text_of(other)] = max(logprob, top.get(self.text_of(other), logprob))
            tops.append(top)
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}, offset

    def text_of(self, token_id: int) -> str:
        """Return the text of a token, or its name if it is a control token."""
        name = self._control.get(token_id)
        return self._tokenizer.bytes_of(token_id).decode("utf-8", "replace") if name is None else name

    def _one(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = None if token_id in self._control else list(self._tokenizer.bytes_of(token_id))
        return {"token": self.text_of(token_id), "logprob": logprob, "bytes": raw}


@dataclass
class Writer:
    """Writes one of the answers to a request, whole or as events."""

    head: dict[str, Any]
    """id, created and model."""
    index: int = 0
    """Index of the answer."""
    include_usage: bool = False
    """Whether the stream ends with the usage; it is null in the other events, as in OpenAI's API."""
    names: TokenNames | None = None
    """Given if log-probabilities were requested."""
    object: ClassVar[str]
    event_object: ClassVar[str]

    def __post_init__(self) -> None:
        self._head = {**self.head, "object": self.event_object, "system_fingerprint": None}
        self._tail = {"usage": None} if self.include_usage else {}

    def choice(self, answer: Update) -> dict[str, Any]:
        """Return the finished answer."""
        raise NotImplementedError

    def start(self) -> str:
        """Return the events before the first token."""
        return ""

    def events(self, update: Update) -> str:
        """Return the events of an update."""
        raise NotImplementedError

    def whole(self, choices: Sequence[dict[str, Any]], counts: dict[str, int]) -> dict[str, Any]:
        """Return the body with all answers."""
        return {**self._head, "object": self.object, "choices": choices, "usage": counts}

    def end(self, counts: dict[str, int] | None) -> str:
        """Return the last events of all answers."""
        last = event({**self._head, "choices": [], "usage": counts}) if counts else ""
        return last + "data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any]) -> str:
        return event({"choices": [{"index": self.index, **choice}], **self._head, **self._tail})


@dataclass
class ChatWriter(Writer):
    """Writes an answer in a chat.

    Everything except the text of an event is constant for an answer and is serialized once.
    """

    tools: Tools | None = None
    """Functions that the model may call."""
    object = "chat.completion"
    event_object = "chat.completion.chunk"

    def __post_init__(self) -> None:
        super().__post_init__()
        tools = self.tools
        self._parser = CallParser(tools.names, tools.max_calls) if tools and tools.functions else None
        self._num_calls = 0

    def start(self) -> str:
        """Return the first event, with the role."""
        return self._delta({"role": "assistant", "content": ""})

    def choice(self, answer: Update) -> dict[str, Any]:
        """Return the finished answer."""
        parts, calls = self._split(answer.parts, is_last=True)
        content = "".join(text for kind, text in parts if kind == "text")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if any(kind != "text" for kind, _ in parts):
            message["nanochat"] = {"parts": [{"type": kind, "text": text} for kind, text in parts]}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        logprobs = self.names.chat_logprobs(answer.scores) if self.names else None
        reason = self._reason(answer.finish_reason)
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def events(self, update: Update) -> str:
        """Return the events of an update: the scores of its tokens, whose text may be in a later one, and its parts."""
        scores = self.names.chat_logprobs(update.scores) if self.names else {"content": []}
        text = self._delta({"content": ""}, logprobs=scores) if scores["content"] else ""
        parts, calls = self._split(join_parts(update.parts), is_last=update.finish_reason is not None)
        text += "".join(self._part(kind, part) for kind, part in parts)
        for call in calls:  # as OpenAI's: first the name, then the arguments
            index, function = self._num_calls, call["function"]
            self._num_calls += 1
            first = {"index": index, **call, "function": {**function, "arguments": ""}}
            text += self._delta({"tool_calls": [first]})
            text += self._delta({"tool_calls": [{"index": index, "function": {"arguments": function["arguments"]}}]})
        return text + (
            self._delta({}, finish_reason=self._reason(update.finish_reason)) if update.finish_reason else ""
        )

    def _split(self, parts: Sequence[Piece], is_last: bool) -> tuple[list[Piece], list[dict[str, Any]]]:
        """Return the parts without calls, and the calls."""
        if self._parser is None:
            return list(parts), []
        found = [
            item
            for kind, text in parts
            for item in (self._parser.push(text) if kind == "text" else [*self._parser.finish(), Piece(kind, text)])
        ]
        found += self._parser.finish() if is_last else []
        calls = [
            {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": call.as_strings()}
            for call in found
            if isinstance(call, ToolCall)
        ]
        pieces = [Piece("text", item) if isinstance(item, str) else item for item in found]
        return join_parts([piece for piece in pieces if not isinstance(piece, ToolCall)]), calls

    def _reason(self, finish_reason: str | None) -> str | None:
        has_calls = self._parser is not None and self._parser.num_calls > 0
        return "tool_calls" if has_calls and finish_reason == "stop" else finish_reason

    def _part(self, kind: str, text: str) -> str:
        if kind != "text":
            return self._delta({"nanochat": {"type": kind, "text": text}})
        before, after = self._around_text
        return f"{before}{json.dumps(text)}{after}"

    @cached_property
    def _around_text(self) -> list[str]:
        return self._delta({"content": _PLACE}).split(json.dumps(_PLACE), 1)

    def _delta(self, delta: dict[str, Any], **more: Any) -> str:
        return self._event({"delta": delta, "logprobs": None, "finish_reason": None, **more})


_PLACE = "\0text\0"
"""Placeholder of an event's text. The model's name may contain it too, but comes later in an event."""


def event(data: dict[str, Any]) -> str:
    """Format a server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"

"""Conversations with a model, as shown and edited in the terminal and the chat page, and the interface to chat models."""

import dataclasses
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.sampling_params import CHAT_PARAMS, SamplingParams
from nanochat_lit.tokenizer import validate_conversation

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text, or parts for the assistant}, as in tokenizer/chat.py."""


class TokenScore(NamedTuple):
    """A sampled token and the most likely ones at its position."""

    text: str
    logprob: float
    """Log-probability at temperature 1, in nats."""
    top: Sequence[tuple[str, float]]
    """Texts and log-probabilities of the most likely tokens."""


@dataclass(kw_only=True, eq=False)
class Answer:
    """An answer being generated. Its chunks can be iterated once; `stop` ends it early."""

    stop: Callable[[], None]
    """Idempotent and thread-safe."""
    num_dropped_turns: int = 0
    """Number of the oldest turns, which did not fit the context."""
    num_tokens: int | None = 0
    """Number of tokens so far; None if unknown."""
    elapsed_s: float = 0.0
    """Seconds from the question to the newest token, regardless of when it was read."""
    finish_reason: str | None = None
    """"stop" if the model ended it, "length" at the token limit; None while it is running or if it was stopped."""
    scores: list[TokenScore] = field(default_factory=list)
    """Tokens so far, if log-probabilities were requested; not those of calculator results."""
    pieces: Generator[Piece, None, None] = field(init=False)
    """Iterator over the chunks; set by the chat model."""


class ChatModel(Protocol):
    """Answers conversations, concurrently if called from several threads."""

    def answer(self, messages: Sequence[Message], settings: SamplingParams, top_logprobs: int = 0) -> Answer:
        """Start the answer to a conversation that ends with a user message.

        `top_logprobs` is how many of the most likely tokens to report at each position; 0 disables `Answer.scores`.
        Raises UserError if it cannot be answered: too long, invalid settings, no server, or too many requests.
        """
        ...


@dataclass
class ChatSession:
    """Alternating questions and answers. Stored in full; turns that exceed the context are dropped only in the prompt.

    `ask`, `retry` and `edit` change nothing if they raise. Otherwise the question is added immediately, and the answer
    grows with every chunk taken from the iterator; closing the iterator early keeps the text so far.
    """

    settings: SamplingParams = CHAT_PARAMS
    """Sampling settings."""
    system: str = ""
    """System prompt; empty for none."""
    top_logprobs: int = 0
    """How many of the most likely tokens to report at each position of the next answers; 0 reports none."""
    messages: list[Message] = field(default_factory=list)
    """Alternating messages, from a user message to an assistant message; answers are lists of parts."""
    answer: Answer | None = None
    """Last answer of this process."""
    num_answers: int = 0
    """Number of answers so far, including removed ones. Each has another seed, so that a retry gives another answer."""

    def ask(self, model: ChatModel, text: str) -> Generator[Piece, None, None]:
        """Send a message and return an iterator over the chunks of the answer; raises UserError before the first."""
        return self._reply(model, self.messages, text)

    def retry(self, model: ChatModel) -> Generator[Piece, None, None]:
        """Replace the last answer by another one; raises UserError as `ask`, or if there is none."""
        self._check_not_empty()
        return self.edit(model, len(self.messages) - 2, self.messages[-2]["content"])

    def edit(self, model: ChatModel, index: int, text: str) -> Generator[Piece, None, None]:
        """Replace an earlier question, and drop the messages after it; raises UserError as `ask`."""
        assert self.messages[index]["role"] == "user", "only questions can be edited"
        return self._reply(model, self.messages[:index], text)

    def undo(self) -> str:
        """Remove and return the last question, and remove its answer; raises UserError if there is none."""
        self._check_not_empty()
        *self.messages, question, _ = self.messages
        self.answer = None
        return question["content"]

    def clear(self) -> None:
        """Remove all messages; keeps the system prompt and the settings."""
        self.messages, self.answer, self.num_answers = [], None, 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON: {"messages", "settings"}; the messages are also a valid training record.

        Raises:
            UserError: If there are no messages, the file cannot be written, or an existing file has other contents.
        """
        self._check_not_empty()
        self.check_saved(path)
        try:
            write_json(path, self.to_saved())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def to_saved(self) -> dict[str, Any]:
        """Return what `save` writes."""
        return {"messages": self._with_system(self.messages), "settings": self.settings.numbers()}

    @staticmethod
    def check_saved(path: str | os.PathLike[str]) -> None:
        """Raise UserError if the file exists and is not a saved conversation."""
        if Path(path).exists():
            ChatSession.load(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ChatSession":
        """Load a saved conversation; raises UserError if the file is missing or has other contents."""
        return cls.from_saved(read_json(path), str(path))

    @classmethod
    def from_saved(cls, saved: object, where: str) -> "ChatSession":
        """Return the conversation of `to_saved`, from an untrusted source that is called `where` in UserErrors."""
        if not isinstance(saved, dict) or set(saved) != {"messages", "settings"}:
            raise UserError(f'{where}: not a saved conversation, which is {{"messages": [...], "settings": {{...}}}}')
        messages, settings = saved["messages"], saved["settings"]
        validate_conversation({"messages": messages}, where)
        if messages[-1]["role"] != "assistant":
            raise UserError(f"{where}: ends with a question; add an answer or remove the question")
        if not isinstance(settings, dict):
            raise UserError(f"{where}: settings must be an object such as {CHAT_PARAMS.numbers()}")
        has_system = messages[0]["role"] == "system"
        return cls(
            settings=CHAT_PARAMS.updated(settings),
            system=messages[0]["content"] if has_system else "",
            messages=messages[has_system:],
            num_answers=len(messages) // 2,
        )

    def _check_not_empty(self) -> None:
        if not self.messages:
            raise UserError("the conversation is empty")

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *messages]

    def _reply(self, model: ChatModel, before: list[Message], text: str) -> Generator[Piece, None, None]:
        messages: list[Message] = [*before, {"role": "user", "content": text}]
        seed = (self.settings.seed + self.num_answers) % 2**63
        settings = dataclasses.replace(self.settings, seed=seed)
        answer = model.answer(self._with_system(messages), settings, self.top_logprobs)
        parts: list[dict[str, Any]] = []
        self.messages = [*messages, {"role": "assistant", "content": parts}]
        self.answer = answer
        self.num_answers += 1
        return _collected(answer, parts)


def _collected(answer: Answer, parts: list[dict[str, Any]]) -> Generator[Piece, None, None]:
    try:
        for piece in answer.pieces:
            if not parts or parts[-1]["type"] != piece.type:
                parts.append({"type": piece.type, "text": ""})
            parts[-1]["text"] += piece.text
            yield piece
    finally:  # also if the iterator is closed early
        answer.stop()
        answer.pieces.close()

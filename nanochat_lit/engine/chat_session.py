"""A conversation between a person and a model, which terminal and page show and change, and what it talks to."""

import dataclasses
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.sampling_params import CHAT_PARAMS, SamplingParams
from nanochat_lit.tokenizer import validate_conversation

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text, or parts if it is the assistant's}, as in tokenizer/chat.py."""


class Answer:
    """One answer while it is being said. Its pieces are iterated over once; `stop` ends it early.

    Args:
        num_dropped_turns: Oldest turns that the model does not see, because they do not fit into its context.
        stop: Ends the answer, from any thread and more than once; the iteration then ends too.
    """

    def __init__(self, *, num_dropped_turns: int = 0, stop: Callable[[], None]) -> None:
        self.num_dropped_turns = num_dropped_turns
        self.num_tokens: int | None = 0
        """Tokens so far; None if it is not known."""
        self.elapsed_s = 0.0
        """From the question to the newest token, whenever that was listened to."""
        self.finish_reason: str | None = None
        """"stop" when the model ended it, "length" when tokens ran out; None while it goes on or when it was stopped."""
        self.stop = stop
        self.pieces: Generator[Piece, None, None]
        """The answer piece by piece, each as soon as it is certain; set by who makes the answer."""


class ChatModel(Protocol):
    """Answers conversations, several at once if they come from several threads."""

    def answer(self, messages: Sequence[Message], settings: SamplingParams) -> Answer:
        """Begin the answer to a conversation whose last message is the user's.

        Raises:
            UserError: If it cannot be answered: too long, impossible settings, no server, too busy.
        """
        ...


@dataclass
class ChatSession:
    """Questions and answers in turn. It is kept whole: what is too long for the model is left out only where it is asked.

    `ask`, `retry` and `edit` change nothing if they raise. Otherwise the conversation holds the question at once, and the
    answer grows in it with every piece that is taken from the iterator; leaving the iterator early keeps what was said.
    """

    settings: SamplingParams = CHAT_PARAMS
    """How answers are generated."""
    system: str = ""
    """What the model is told before the first message; empty for nothing."""
    messages: list[Message] = field(default_factory=list)
    """User and assistant in turn, beginning with the user and ending with the assistant; answers are lists of parts."""
    answer: Answer | None = None
    """The last answer that was begun here."""
    num_answers: int = 0
    """Answers so far, also those that were taken back. Each draws from another seed, so that a retry says something else."""

    def ask(self, model: ChatModel, text: str) -> Generator[Piece, None, None]:
        """Say something, and hear the answer.

        Args:
            model: Who answers.
            text: The user's message.

        Returns:
            The answer piece by piece.

        Raises:
            UserError: If it cannot be answered, before the first piece.
        """
        return self._reply(model, self.messages, text)

    def retry(self, model: ChatModel) -> Generator[Piece, None, None]:
        """Another answer to the last question, instead of the last one.

        Raises:
            UserError: As `ask`, or if there is none.
        """
        self._check_not_empty()
        return self.edit(model, len(self.messages) - 2, self.messages[-2]["content"])

    def edit(self, model: ChatModel, index: int, text: str) -> Generator[Piece, None, None]:
        """Ask something else in place of an earlier question; what followed it is forgotten.

        Args:
            model: Who answers.
            index: Of the user's message in `messages`.
            text: What it shall be.

        Raises:
            UserError: As `ask`.
        """
        assert self.messages[index]["role"] == "user", "only questions can be edited"
        return self._reply(model, self.messages[:index], text)

    def undo(self) -> str:
        """Take back the last question with its answer.

        Returns:
            The question.

        Raises:
            UserError: If there is none.
        """
        self._check_not_empty()
        *self.messages, question, _ = self.messages
        self.answer = None
        return question["content"]

    def clear(self) -> None:
        """Forget what was said; the system prompt and the settings stay."""
        self.messages, self.answer, self.num_answers = [], None, 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON: {"messages", "settings"}; the messages are also a row of chat training data.

        Raises:
            UserError: If there is nothing to save, the file cannot be written, or it holds something else already.
        """
        self._check_not_empty()
        self.check_saved(path)
        saved = {"messages": self._with_system(self.messages), "settings": self.settings.numbers()}
        try:
            write_json(path, saved)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    @staticmethod
    def check_saved(path: str | os.PathLike[str]) -> None:
        """Raise UserError if there is a file that is not a saved conversation."""
        if Path(path).exists():
            ChatSession.load(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ChatSession":
        """Read what `save` wrote.

        Raises:
            UserError: If the file is missing or holds something else.
        """
        saved = read_json(path)
        if not isinstance(saved, dict) or set(saved) != {"messages", "settings"}:
            raise UserError(f'{path}: not a saved conversation, which is {{"messages": [...], "settings": {{...}}}}')
        messages, settings = saved["messages"], saved["settings"]
        validate_conversation({"messages": messages}, str(path))
        if messages[-1]["role"] != "assistant":
            raise UserError(f"{path}: ends with a question; give it an answer or take it out")
        if not isinstance(settings, dict):
            raise UserError(f"{path}: settings must be an object such as {CHAT_PARAMS.numbers()}")
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
        answer = model.answer(self._with_system(messages), dataclasses.replace(self.settings, seed=seed))
        parts: list[dict[str, Any]] = []
        self.messages = [*messages, {"role": "assistant", "content": parts}]
        self.answer = answer
        self.num_answers += 1
        return _collected(answer, parts)


def _collected(answer: Answer, parts: list[dict[str, Any]]) -> Generator[Piece, None, None]:
    """The pieces, gathered in `parts` on their way."""
    try:
        for piece in answer.pieces:
            if not parts or parts[-1]["type"] != piece.type:
                parts.append({"type": piece.type, "text": ""})
            parts[-1]["text"] += piece.text
            yield piece
    finally:  # also when the listener leaves
        answer.stop()
        answer.pieces.close()

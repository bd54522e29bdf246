"""Actions of the chat page on one conversation, independent of the page itself."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_session import ChatModel, ChatSession
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_view import shown_messages, status_line, typed_text

REFRESH_S = 0.05
"""Minimum interval between views of a growing answer in seconds; limits the browser's rendering work."""


class TabView(NamedTuple):
    """Contents of a tab."""

    messages: list[dict[str, Any]]
    """Messages for Gradio's Chatbot."""
    status: str
    """Status line of the last answer."""
    is_running: bool
    """Whether an answer is being generated."""


class ChatTab:
    """A conversation in a browser tab. Methods are thread-safe.

    Requesting an answer first stops the current one. The views of an answer end when another one replaces it.

    Args:
        model: Model that answers.
        settings: Initial sampling settings.
    """

    def __init__(self, model: ChatModel, settings: SamplingParams) -> None:
        self._model = model
        self._conversation = ChatSession(settings=settings)
        self._lock = threading.Lock()
        self.is_markdown = False
        """Whether the page renders Markdown."""

    def send(self, text: object) -> Iterator[TabView]:
        """Send a message and yield views of the growing answer.

        Raises:
            UserError: If it cannot be answered; `view` then returns the previous state or the partial answer.
        """
        return self._answering(lambda: self._conversation.ask(self._model, _typed(text)))

    def retry(self) -> Iterator[TabView]:
        """Regenerate the last answer; raises as `send`."""
        is_same = self._conversation.settings.temperature == 0
        note = "the answer is identical at temperature 0; increase it for a different one" if is_same else ""
        return self._answering(lambda: self._conversation.retry(self._model), note)

    def edit(self, shown_index: object, text: object) -> Iterator[TabView]:
        """Replace a question, given by its index among the shown messages; raises as `send`."""
        return self._answering(
            lambda: self._conversation.edit(self._model, self._index_of_question(shown_index), _typed(text))
        )

    def _index_of_question(self, shown_index: object) -> int:
        shown = shown_messages(self._conversation.messages)
        if isinstance(shown_index, int) and 0 <= shown_index < len(shown) and shown[shown_index][1]["role"] == "user":
            return shown[shown_index][0]
        raise UserError("that question was removed; send it as a new message")

    def undo(self) -> tuple[TabView, str]:
        """Remove the last question with its answer, and return the question.

        Raises:
            UserError: If there is none.
        """
        with self._lock:
            self.stop()
            question = self._conversation.undo()
        return self.view(), question

    def clear(self) -> TabView:
        """Start a new conversation."""
        with self._lock:
            self.stop()
            self._conversation.clear()
        return self.view()

    def stop(self) -> None:
        """Stop the current answer; keeps the text so far."""
        if self._conversation.answer is not None:
            self._conversation.answer.stop()

    def configure(self, settings: Mapping[str, Any], system: object) -> None:
        """Set the sampling settings and the system prompt of the next answers.

        Args:
            settings: Fields of `SamplingParams` by name; None keeps a field.
            system: The system prompt.

        Raises:
            UserError: If a value is not allowed.
        """
        if not isinstance(system, str):
            raise UserError("the system prompt must be text")
        self._conversation.settings = self._conversation.settings.updated(settings)
        self._conversation.system = system.strip()

    def view(self, status: str = "", is_running: bool = False) -> TabView:
        """Return the current contents."""
        shown = shown_messages(self._conversation.messages, self.is_markdown)
        return TabView([message for _, message in shown], status, is_running)

    def _answering(self, begin: Callable[[], Generator[Piece, None, None]], note: str = "") -> Iterator[TabView]:
        with self._lock:
            self.stop()
            pieces = begin()
            answer = self._conversation.answer
        assert answer is not None
        shown_s = time.perf_counter()
        try:
            yield self.view(is_running=True)
            for _ in pieces:
                now_s = time.perf_counter()
                if now_s - shown_s >= REFRESH_S and self._conversation.answer is answer:
                    shown_s = now_s
                    yield self.view(status_line(answer, is_running=True), is_running=True)
        finally:  # also runs when the tab is closed
            answer.stop()
            pieces.close()
        if self._conversation.answer is answer:
            yield self.view(status_line(answer, is_running=False, note=note))


def _typed(text: object) -> str:
    if not isinstance(text, str):
        raise UserError("the message must be text")
    if not (typed := typed_text(text)):
        raise UserError("the message is empty; write something")
    return typed

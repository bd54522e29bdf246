"""What the buttons of the chat page do, without the page: one conversation, shown again with every change."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_model import ChatModel
from nanochat_lit.engine.conversation import Conversation
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_view import shown_messages, status_line, typed_text

REFRESH_S = 0.05
"""Shortest time between two views of a growing answer: each token would be more than a browser likes to draw."""


class TabView(NamedTuple):
    """What a tab shows."""

    messages: list[dict[str, Any]]
    """For Gradio's Chatbot."""
    status: str
    """One line about the last answer."""
    is_running: bool
    """Whether an answer is being said, so that there is something to stop."""


class ChatTab:
    """A conversation in a tab of a browser. Its methods may be called from several threads.

    Asking for an answer, in whatever way, first stops the one that is being said. The views of an answer end when another
    has taken its place.

    Args:
        model: Who answers.
        settings: What the conversation begins with.
    """

    def __init__(self, model: ChatModel, settings: SamplingParams) -> None:
        self._model = model
        self._conversation = Conversation(settings=settings)
        self._lock = threading.Lock()
        self.is_markdown = False
        """Whether the page renders Markdown."""

    def send(self, text: object) -> Iterator[TabView]:
        """Ask something, and see the answer grow.

        Raises:
            UserError: If it cannot be answered; `view` then shows what there was before, or what was said so far.
        """
        return self._answering(lambda: self._conversation.ask(self._model, _typed(text)))

    def retry(self) -> Iterator[TabView]:
        """See another answer to the last question grow; raises as `send`."""
        is_same = self._conversation.settings.temperature == 0
        note = "the same answer again, as always at temperature 0; raise it for another" if is_same else ""
        return self._answering(lambda: self._conversation.retry(self._model), note)

    def edit(self, shown_index: object, text: object) -> Iterator[TabView]:
        """Ask something else in place of a question, given by its index among the shown messages; raises as `send`."""
        return self._answering(
            lambda: self._conversation.edit(self._model, self._index_of_question(shown_index), _typed(text))
        )

    def _index_of_question(self, shown_index: object) -> int:
        shown = shown_messages(self._conversation.messages)
        if isinstance(shown_index, int) and 0 <= shown_index < len(shown) and shown[shown_index][1]["role"] == "user":
            return shown[shown_index][0]
        raise UserError("that question has been dropped; ask it as a new message")

    def undo(self) -> tuple[TabView, str]:
        """Take back the last question with its answer; the question is returned.

        Raises:
            UserError: If there is none.
        """
        with self._lock:
            self.stop()
            question = self._conversation.undo()
        return self.view(), question

    def clear(self) -> TabView:
        """Forget the conversation."""
        with self._lock:
            self.stop()
            self._conversation.clear()
        return self.view()

    def stop(self) -> None:
        """End the answer that is being said; it keeps what was said."""
        if self._conversation.answer is not None:
            self._conversation.answer.stop()

    def configure(self, settings: Mapping[str, Any], system: object) -> None:
        """Change how the next answers are generated, and what the model is told beforehand.

        Args:
            settings: Of `SamplingParams`, by name; None leaves one as it is.
            system: The system prompt.

        Raises:
            UserError: If a value is not allowed.
        """
        if not isinstance(system, str):
            raise UserError("the system prompt must be text")
        self._conversation.settings = self._conversation.settings.updated(settings)
        self._conversation.system = system.strip()

    def view(self, status: str = "", is_running: bool = False) -> TabView:
        """What to show now."""
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
        finally:  # also when the tab is closed
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

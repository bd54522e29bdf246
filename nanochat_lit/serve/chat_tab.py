"""Actions of the chat page on its conversations, and what it shows of them, independent of the page itself."""

import contextlib
import html
import json
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_session import Answer, ChatModel, ChatSession, Message, TokenScore
from nanochat_lit.engine.sampling_params import SamplingParams

# The Chatbot interprets HTML even without Markdown. An invisible character after the sign prevents it. (The entity &lt;
# would appear literally when the message is edited or copied.)
_HTML_SIGN = re.compile(r"<(?=[A-Za-z/!?])|&(?=[A-Za-z#])")
# fenced or in backticks; an unclosed fence does not count as code
_CODE = re.compile(r"(^```[^`\n]*\n.*?^```[ \t]*$|(?<![`\\])`[^`\n]+`(?!`))", re.DOTALL | re.MULTILINE)
_WORD_JOINER, _HAIR_SPACE = "\u2060", "\u200a"
# A person's text is shown as typed, without Markdown: a space around signs prevents emphasis, and an invisible character
# at the start of a line prevents headings, lists and blocks of code, and inside a link the link.
_EMPHASIS = re.compile(r"[*_~]+")
_LINK = re.compile(r"(?<=\])(?=[(\[:])")
_LINE_START = re.compile(r"^(?=    |\t|[ ]{0,3}(?:[#>|=+-]|\d+[.)]))", re.MULTILINE)
# Exceptions from the Markdown of answers: 2*3*4 is a product, and a line "42." not an empty list.
_PRODUCT = re.compile(r"(?<=\d)\*(?=\d)")
_NUMBER = re.compile(r"^(?=[ ]{0,3}\d+[.)][ \t]*$)", re.MULTILINE)


def shown_messages(messages: Sequence[Message], is_markdown: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """Convert messages for the Chatbot; each calculator call with its result becomes a collapsible message.

    Without `is_markdown` text is shown literally; HTML is never rendered. Returns (index in `messages`, message), in
    order.
    """

    def literal(text: str, is_answer: bool = True) -> str:
        # Markdown shows code literally, so it needs no invisible characters, which would be copied
        between = _CODE.split(text) if is_markdown else [text]
        for index, part in enumerate(between[::2]):
            shown = _HTML_SIGN.sub(lambda sign: sign.group() + _WORD_JOINER, part)
            if is_markdown:
                shown = (_PRODUCT if is_answer else _EMPHASIS).sub(_spaced, shown)
                for place in (_NUMBER,) if is_answer else (_LINE_START, _LINK):
                    shown = place.sub(_WORD_JOINER, shown)
            between[2 * index] = shown
        return "".join(between)

    shown: list[tuple[int, dict[str, Any]]] = []
    for index, message in enumerate(messages):
        if isinstance(message["content"], str):
            content = literal(message["content"], is_answer=message["role"] != "user")
            shown.append((index, {"role": message["role"], "content": content}))
            continue
        call, expression = None, ""
        for part in message["content"]:
            if part["type"] == "text":
                call = None
                shown.append((index, {"role": "assistant", "content": literal(part["text"])}))
            elif part["type"] == "python_output" and call is not None:
                call["content"] = literal(f"The model wrote {expression}\nThe calculator computed {part['text']}")
                call["metadata"]["log"] = literal(f"{expression} = {part['text']}")
                call = None
            else:
                expression = part["text"]
                metadata = {"title": "Calculator", "log": literal(expression), "status": "done"}
                call = {"role": "assistant", "content": literal(expression), "metadata": metadata}
                shown.append((index, call))
    return shown


def escaped(text: str) -> str:
    """Return untrusted text so that Markdown shows it literally."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _spaced(sign: re.Match[str]) -> str:
    return f"{_HAIR_SPACE}{sign.group()}{_HAIR_SPACE}"


def tokens_html(scores: Sequence[TokenScore]) -> str:
    """Return the tokens of an answer as HTML (escaped), coloured by probability, with a tooltip of alternatives."""
    spans = []
    for score in scores:
        chance = math.exp(min(score.logprob, 0.0))
        rows = [f"{math.exp(min(logprob, 0.0)):6.1%}  {_visible(text)}" for text, logprob in score.top]
        tip = html.escape("\n".join([f"{_visible(score.text)}: {chance:.1%}", "", *rows]))
        spans.append(f'<span tabindex="0" style="--p: {chance:.3f}" data-tip="{tip}">{html.escape(score.text)}</span>')
    return f"<p>{''.join(spans)}</p>" if spans else ""


def _visible(text: str) -> str:
    return text.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def status_line(answer: Answer, is_running: bool, note: str = "") -> str:
    """Return the speed of an answer and notes on truncation."""
    notes = [note] if note else []
    if answer.num_tokens and answer.elapsed_s > 0:
        notes.append(f"{answer.num_tokens} token{'s' * (answer.num_tokens > 1)}")
        notes.append(f"{answer.num_tokens / answer.elapsed_s:,.0f} tokens/s")
    if answer.finish_reason == "length":
        notes.append("truncated by max_new_tokens or the model's context")
    elif answer.finish_reason is None and not is_running:
        notes.append("stopped")
    if answer.num_dropped_turns:
        turns = "turn is" if answer.num_dropped_turns == 1 else f"{answer.num_dropped_turns} turns are"
        notes.append(f"the oldest {turns} dropped: the context is full")
    return " · ".join(notes)


def typed_text(text: str) -> str:
    """Return the original text of a message from the page, which may contain the invisible characters."""
    return text.replace(_WORD_JOINER, "").replace(_HAIR_SPACE, "").strip()


def from_browser(text: object) -> Any:
    """Return the value of JSON text that the browser has stored; None if it is something else."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


REFRESH_S = 0.05
"""Minimum interval between views of a growing answer in seconds; limits the browser's rendering work."""

TOP_LOGPROBS = 5
"""Alternatives shown for each token."""


class ShownModel(NamedTuple):
    """A model on the page."""

    model: ChatModel
    name: str
    about: str = ""
    """Its size and training; untrusted text."""
    problem: Callable[[], str | None] = lambda: None
    """Returns why it cannot answer now; None if it can."""


class TabView(NamedTuple):
    """Contents of one conversation on the page."""

    messages: list[dict[str, Any]]
    """Messages for Gradio's Chatbot."""
    status: str
    """Status line of the last answer."""
    is_running: bool
    """Whether an answer is being generated."""
    tokens: str = ""
    """HTML of the last answer's tokens with their probabilities, if requested."""


class ChatTab:
    """A conversation with one model. Methods are thread-safe.

    Requesting an answer first stops the current one. The views of an answer end when another one replaces it.
    """

    def __init__(self, model: ChatModel, settings: SamplingParams) -> None:
        self._model = model
        self.conversation = ChatSession(settings=settings)
        """The conversation."""
        self._lock = threading.Lock()
        self.is_markdown = True
        """Whether the page renders Markdown."""

    def send(self, text: object) -> Iterator[TabView]:
        """Send a message and yield views of the growing answer; raises UserError, after which `view` is current."""
        return self._answering(lambda: self.conversation.ask(self._model, _typed(text)))

    def retry(self) -> Iterator[TabView]:
        """Regenerate the last answer; raises as `send`."""
        is_same = self.conversation.settings.temperature == 0
        note = "the answer is identical at temperature 0; increase it for a different one" if is_same else ""
        return self._answering(lambda: self.conversation.retry(self._model), note)

    def edit(self, index: int, text: object) -> Iterator[TabView]:
        """Replace a question, given by its index in the conversation; raises as `send`."""

        def begin() -> Generator[Piece, None, None]:
            if index >= len(self.conversation.messages):
                raise UserError("that question was removed; send it as a new message")
            return self.conversation.edit(self._model, index, _typed(text))

        return self._answering(begin)

    def index_of_question(self, shown_index: object) -> int:
        """Return the index in the conversation of a shown question; raises UserError if there is none."""
        shown = shown_messages(self.conversation.messages)
        if isinstance(shown_index, int) and 0 <= shown_index < len(shown) and shown[shown_index][1]["role"] == "user":
            return shown[shown_index][0]
        raise UserError("that question was removed; send it as a new message")

    def undo(self) -> str:
        """Remove the last question with its answer, and return the question; raises UserError if there is none."""
        with self._lock:
            self.stop()
            return self.conversation.undo()

    def clear(self) -> None:
        """Start a new conversation."""
        with self._lock:
            self.stop()
            self.conversation.clear()

    def open(self, conversation: ChatSession) -> None:
        """Continue another conversation."""
        with self._lock:
            self.stop()
            conversation.top_logprobs = self.conversation.top_logprobs
            self.conversation = conversation

    def stop(self) -> None:
        """Stop the current answer; keeps the text so far."""
        if self.conversation.answer is not None:
            self.conversation.answer.stop()

    def configure(self, settings: Mapping[str, Any], system: object, *, is_markdown: bool, is_scored: bool) -> None:
        """Set the sampling settings (None keeps a field) and the system prompt of the next answers, and what is shown.

        Raises:
            UserError: If a value is not allowed.
        """
        if not isinstance(system, str):
            raise UserError("the system prompt must be text")
        self.conversation.settings = self.conversation.settings.updated(settings)
        self.conversation.system = system.strip()
        self.conversation.top_logprobs = TOP_LOGPROBS if is_scored else 0
        self.is_markdown = is_markdown

    def view(self, status: str = "", is_running: bool = False, tokens: str = "") -> TabView:
        """Return the current contents."""
        shown = shown_messages(self.conversation.messages, self.is_markdown)
        return TabView([message for _, message in shown], status, is_running, tokens)

    def _answering(self, begin: Callable[[], Generator[Piece, None, None]], note: str = "") -> Iterator[TabView]:
        with self._lock:
            self.stop()
            pieces = begin()
            answer = self.conversation.answer
        assert answer is not None
        shown_s = time.perf_counter()
        try:
            yield self.view(is_running=True)
            for _ in pieces:
                now_s = time.perf_counter()
                if now_s - shown_s >= REFRESH_S and self.conversation.answer is answer:
                    shown_s = now_s
                    yield self.view(status_line(answer, is_running=True), is_running=True)
        finally:  # also runs when the tab is closed
            answer.stop()
            pieces.close()
        if self.conversation.answer is answer:
            yield self.view(status_line(answer, is_running=False, note=note), tokens=tokens_html(answer.scores))


class BrowserTab:
    """A tab of the browser: the same questions to one model, or to two side by side."""

    def __init__(self, models: Sequence[ChatModel], settings: SamplingParams) -> None:
        self.sides = [ChatTab(model, settings) for model in models]
        """The conversation with each model."""
        self._id = ""

    def views(self) -> list[TabView]:
        """Return the current contents."""
        return [side.view() for side in self.sides]

    def answering(self, begin: Callable[[ChatTab], Iterator[TabView]]) -> Iterator[list[TabView]]:
        """Start an answer of each model by `begin`, such as `ChatTab.retry`, and yield the views of all sides.

        Raises:
            UserError: If a model cannot answer; raised once the others have.
        """
        self._id = self._id or secrets.token_hex(8)
        if len(self.sides) == 1:
            for view in begin(self.sides[0]):
                yield [view]
            return
        views, errors = [side.view(is_running=True) for side in self.sides], []
        news: _News = SimpleQueue()
        running = set(range(len(self.sides)))
        for index, side in enumerate(self.sides):
            threading.Thread(target=_run, args=(index, begin, side, news), daemon=True).start()
        try:
            while running:
                is_new = False
                items = [news.get()]
                while not news.empty():  # a slow page is shown only the newest views
                    items.append(news.get())
                for index, item in items:
                    if isinstance(item, TabView):
                        views[index], is_new = item, True
                    elif item is None:
                        running.discard(index)
                    else:
                        errors.append(item)
                        views[index] = self.sides[index].view()
                if is_new:
                    yield list(views)
        finally:
            self.stop()
        if errors:
            raise errors[0]

    def edit(self, side: int, shown_index: object, text: object) -> Iterator[list[TabView]]:
        """Replace a question that is shown on one side, on all of them; raises as `ChatTab.send`."""
        index = self.sides[side].index_of_question(shown_index)
        yield from self.answering(lambda chat: chat.edit(index, text))

    def undo(self) -> str:
        """Remove the last question with its answers, and return the question; raises as `ChatTab.undo`."""
        question = self.sides[0].undo()
        for side in self.sides[1:]:
            with contextlib.suppress(UserError):  # the question failed on this side
                side.undo()
        return question

    def clear(self) -> None:
        """Start a new conversation."""
        self._id = ""
        for side in self.sides:
            side.clear()

    def stop(self) -> None:
        """Stop the current answers."""
        for side in self.sides:
            side.stop()

    def saved(self) -> str:
        """Return the conversation as JSON, for the browser to store: {"id", "chats": [what /load reads, ...]}."""
        if not self._id:
            return ""
        chats = [side.conversation.to_saved() for side in self.sides if side.conversation.messages]
        return json.dumps({"id": self._id, "chats": chats})

    def open(self, text: object) -> None:
        """Continue a stored conversation, the result of `saved`, from the browser and thus untrusted.

        Raises:
            UserError: If it is something else; the current conversation then stays.
        """
        where, saved = "the stored conversation", from_browser(text)
        chats = saved.get("chats") if isinstance(saved, dict) and isinstance(saved.get("id"), str) else None
        if not isinstance(chats, list) or not chats:
            raise UserError(f"{where} cannot be read; delete it")
        found = [ChatSession.from_saved(chat, where) for chat in chats[: len(self.sides)]]
        self._id = saved["id"]
        for index, side in enumerate(self.sides):
            # a conversation with one model continues with both
            side.open(found[index] if index < len(found) else ChatSession.from_saved(chats[0], where))


_News = SimpleQueue[tuple[int, TabView | Exception | None]]
"""Views of several sides by index; None is the end of one."""


def _run(index: int, begin: Callable[[ChatTab], Iterator[TabView]], side: ChatTab, news: _News) -> None:
    try:
        for view in begin(side):
            news.put((index, view))
    except Exception as error:  # noqa: BLE001 - raised by the reader
        news.put((index, error))
    news.put((index, None))


def _typed(text: object) -> str:
    if not isinstance(text, str):
        raise UserError("the message must be text")
    if not (typed := typed_text(text)):
        raise UserError("the message is empty; write something")
    return typed

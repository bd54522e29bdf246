"""The chat page: Gradio in front of a `ChatModel`.

The page makes no third-party requests: Gradio's analytics, run history and links are off, and its fonts are bundled. A
Content-Security-Policy (serve/gate.py) prevents the browser from loading external resources, such as an image in a
model's Markdown, which would reveal the reader to its server.

The browser stores the conversations (chat_page.js); here is the open one of each session. Answers end through their own `stop`, not through Gradio's event cancellation,
which would discard the text shown so far.
"""

import contextlib
import html
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
from gradio import themes
from starlette.responses import PlainTextResponse

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.chat_session import ChatModel
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_tab import BrowserTab, ShownModel, TabView, escaped, from_browser
from nanochat_lit.serve.gate import Gate, PageGate

MAX_TABS = 256
"""Maximum number of stored conversations; the least recently used one is dropped."""

MAX_TEMPERATURE = 2.0
MAX_TOP_K = 200

EXAMPLES = (
    "Who are you?",
    "What is 12 + 30?",
    "How many letters r are in strawberry?",
    "What is the opposite of hot?",
    "Tell me a story about a fox.",
    "What can you do?",
)

_Updates = list[Any]
"""Updates of `_Parts.outputs`."""

_SETTINGS = ("temperature", "top_k", "top_p", "max_new_tokens", "seed")

# hidden: no loading overlay; no limit: tabs run concurrently; private: functions need a session
_QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}

_KEYS = "Enter sends, Shift+Enter begins a line, Esc stops."

SAVE_EVERY_S = 1.0
"""Interval at which the browser stores a growing answer, in seconds."""


class OpenTabs:
    """All open tabs."""

    def __init__(self, models: Sequence[ChatModel], settings: SamplingParams) -> None:
        self._models, self._settings = models, settings
        self._tabs: OrderedDict[str, BrowserTab] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> BrowserTab:
        """Return the tab of a request."""
        session = str(request.session_hash)
        with self._lock:
            tab = self._tabs.pop(session, None) or BrowserTab(self._models, self._settings)
            self._tabs[session] = tab  # most recently used last
            if len(self._tabs) > MAX_TABS:
                self._tabs.popitem(last=False)[1].stop()
        return tab


@dataclass(kw_only=True)
class _Parts:
    controls: list[Any]
    chatbots: list[Any]
    others: list[Any]
    """Status line and tokens of each chatbot."""
    box: Any
    saved: Any
    listing: Any

    @property
    def outputs(self) -> list[Any]:
        return [*self.chatbots, *self.others, self.box, self.saved]

    def on(self, event: str) -> list[Any]:
        """Return an event of every chatbot."""
        return [getattr(chatbot, event) for chatbot in self.chatbots]


def build_page(shown: Sequence[ShownModel], settings: SamplingParams, max_new_tokens: int) -> gr.Blocks:
    """Build the page as Gradio Blocks: the model that answers, and optionally another one to compare it with.

    `max_new_tokens` is the maximum of its slider.
    """
    title = " and ".join(one.name for one in shown)
    # analytics_enabled=False also disables the thread that checks for a new Gradio version
    with gr.Blocks(title=f"{title} · nanochat-lit", analytics_enabled=False, fill_height=True) as page:
        with gr.Sidebar(position="left", open=False, width=280) as sidebar:
            buttons, listing = _list_of_conversations()
        with gr.Sidebar(position="right", open=False):
            controls = _controls(settings, max_new_tokens)
        with gr.Row(elem_id="page", scale=1):
            sides = [_side(index, one) for index, one in enumerate(shown)]
        box = gr.Textbox(
            elem_id="message",
            show_label=False,
            container=False,
            placeholder="Message",
            submit_btn=True,
            autofocus=True,
            max_lines=8,
        )
        saved = gr.Textbox(visible=False)
        chatbots, others = [chatbot for chatbot, *_ in sides], [other for _, *others in sides for other in others]
        parts = _Parts(controls=controls, chatbots=chatbots, others=others, box=box, saved=saved, listing=listing)
        tabs = OpenTabs([one.model for one in shown], settings)
        _connect_answers(tabs, parts)
        _connect_changes(tabs, parts)
        _connect_stored(page, tabs, parts)
        _connect_conversations(page, tabs, parts, buttons, sidebar)
    return page


def _side(index: int, shown: ShownModel) -> tuple[Any, Any, Any]:
    """Return the chatbot, the status line and the tokens of one model."""
    with gr.Column(min_width=300):
        gr.Markdown(f"### {escaped(shown.name)}")
        chatbot = gr.Chatbot(
            elem_id=f"chat-{index}",
            show_label=False,
            scale=1,
            editable="user",
            buttons=["copy"],
            placeholder=f"Chat with **{escaped(shown.name)}**\n\n{escaped(shown.about)}\n\n{_KEYS}",
            examples=[{"text": text} for text in EXAMPLES],
            feedback_options=None,
            latex_delimiters=[],
        )
        tokens = gr.HTML(elem_id=f"tokens-{index}", elem_classes="tokens", js_on_load=None)
        status = gr.Markdown(elem_id=f"status-{index}")
    return chatbot, status, tokens


def _list_of_conversations() -> tuple[dict[str, Any], Any]:
    """Return the buttons by name, and the list; its contents are set by the browser (chat_page.js)."""
    buttons = {"new": gr.Button("New chat", variant="primary", size="sm")}
    listing: Any = gr.Radio([], elem_id="listing", label="Conversations", container=False)
    listing.preprocess = lambda value: value  # the choices are not known here
    with gr.Row():
        buttons |= {name: gr.Button(name.capitalize(), size="sm", min_width=90) for name in ("rename", "delete")}
    with gr.Row():
        buttons |= {"md": gr.Button("Export Markdown", size="sm", min_width=90)}
        buttons |= {"json": gr.Button("Export JSON", size="sm", min_width=90)}
    gr.Markdown("Conversations are stored in this browser only.")
    return buttons, listing


def _controls(settings: SamplingParams, max_new_tokens: int) -> list[Any]:
    """Return the controls: _SETTINGS in order, the system prompt, Markdown and probabilities."""
    controls = [
        gr.Slider(0, MAX_TEMPERATURE, settings.temperature, step=0.05, label="Temperature", info="0: greedy"),
        gr.Slider(0, MAX_TOP_K, settings.top_k, step=1, label="Top-k", info="0: all tokens"),
        gr.Slider(0.05, 1, settings.top_p, step=0.05, label="Top-p", info="1: all tokens"),
        gr.Slider(1, max_new_tokens, min(settings.max_new_tokens, max_new_tokens), step=1, label="New tokens"),
        gr.Number(settings.seed, label="Seed", precision=0),
        gr.Textbox(label="System prompt", lines=3, placeholder="Instructions before the first message"),
        gr.Checkbox(label="Show Markdown", value=True),
        gr.Checkbox(label="Show probabilities of tokens", value=False, info="of the next answers"),
    ]
    for control in controls:
        # checked by `SamplingParams`; Gradio's own checks would replace the conversation by an error
        control.preprocess = lambda value: value
    return controls


def _configure(tab: BrowserTab, values: Sequence[Any]) -> None:
    *numbers, system, is_markdown, is_scored = values
    for side in tab.sides:
        side.configure(
            dict(zip(_SETTINGS, numbers, strict=True)),
            system,
            is_markdown=is_markdown is True,
            is_scored=is_scored is True,
        )


def _connect_answers(tabs: OpenTabs, parts: _Parts) -> None:
    def send(request: gr.Request, text: str, *values: Any) -> Iterator[_Updates]:
        tab = tabs.of(request)
        if isinstance(text, str) and not text.strip():
            yield _updates(tab, tab.views())
        else:
            yield from _answering(tab, tab.answering(lambda side: side.send(text)), values, typed=text)

    def send_example(request: gr.Request, event: gr.SelectData, *values: Any) -> Iterator[_Updates]:
        tab = tabs.of(request)
        text = event.value.get("text") if isinstance(event.value, dict) else None
        yield from _answering(tab, tab.answering(lambda side: side.send(text)), values)

    def retry(request: gr.Request, *values: Any) -> Iterator[_Updates]:
        tab = tabs.of(request)
        yield from _answering(tab, tab.answering(lambda side: side.retry()), values)

    def edit_on(side: int) -> Callable[..., Iterator[_Updates]]:
        def edit(request: gr.Request, event: gr.EditData, *values: Any) -> Iterator[_Updates]:
            tab = tabs.of(request)
            index = event.index[0] if isinstance(event.index, list) and event.index else event.index
            yield from _answering(tab, tab.edit(side, index, event.value), values)

        return edit

    parts.box.submit(send, [parts.box, *parts.controls], parts.outputs, **_QUIET)
    gr.on(parts.on("example_select"), send_example, parts.controls, parts.outputs, **_QUIET)
    gr.on(parts.on("retry"), retry, parts.controls, parts.outputs, **_QUIET)
    for index, chatbot in enumerate(parts.chatbots):
        chatbot.edit(edit_on(index), parts.controls, parts.outputs, **_QUIET)


def _connect_changes(tabs: OpenTabs, parts: _Parts) -> None:
    def undo(request: gr.Request) -> _Updates:
        tab = tabs.of(request)
        try:
            question = tab.undo()
        except UserError as error:
            _warn(error)
            return _updates(tab, tab.views())
        return _updates(tab, tab.views(), value=question)

    def stop(request: gr.Request) -> None:
        tabs.of(request).stop()

    def render_markdown(request: gr.Request, is_on: bool) -> Any:
        tab = tabs.of(request)
        for side in tab.sides:
            side.is_markdown = is_on is True
        updates = [gr.update(value=view.messages, render_markdown=is_on is True) for view in tab.views()]
        return updates if len(updates) > 1 else updates[0]  # a list would be the value of a single chatbot

    gr.on(parts.on("undo"), undo, None, parts.outputs, **_QUIET)
    parts.box.stop(stop, None, None, **_QUIET)  # queued like the others: the gate blocks other ways to call a function
    parts.controls[-2].change(render_markdown, parts.controls[-2], parts.chatbots, **_QUIET)


def _connect_stored(page: gr.Blocks, tabs: OpenTabs, parts: _Parts) -> None:
    """Connect the events that continue a conversation of the browser: loading the page, and the list."""

    def restore(request: gr.Request, settings: object, chat: object, draft: object) -> list[Any]:
        tab, kept = tabs.of(request), _kept_values(settings, len(parts.controls))
        with contextlib.suppress(UserError):  # of another model, or damaged
            if kept is not None:
                _configure(tab, kept)
        restored = open_chat(request, chat) if chat else everything_of(tab)
        if isinstance(draft, str) and draft:
            restored[len(parts.outputs) - 2] = gr.update(value=draft)
        return restored

    def open_chat(request: gr.Request, chat: object) -> list[Any]:
        tab = tabs.of(request)
        try:
            tab.open(chat)
        except UserError as error:
            _warn(error)
        return everything_of(tab)

    def everything_of(tab: BrowserTab) -> list[Any]:
        # no gr.skip: it would replace a control, and its `preprocess`, by a new one
        side = tab.sides[0]
        numbers = [getattr(side.conversation.settings, name) for name in _SETTINGS]
        flags = [side.is_markdown, side.conversation.top_logprobs > 0]
        return [*_updates(tab, tab.views()), *numbers, side.conversation.system, *flags]

    everything = [*parts.outputs, *parts.controls]
    hidden = [gr.Textbox(visible=False) for _ in range(2)]
    page.load(restore, [*hidden, parts.box], everything, js="() => nanochat.start()", **_QUIET)
    parts.listing.input(open_chat, parts.listing, everything, js="(id) => [nanochat.stored(id)]", **_QUIET)


def _connect_conversations(
    page: gr.Blocks, tabs: OpenTabs, parts: _Parts, buttons: dict[str, Any], sidebar: Any
) -> None:
    """Connect the buttons of the list, and all that the browser stores."""

    def create(request: gr.Request, is_wanted: object) -> _Updates:
        tab = tabs.of(request)
        if is_wanted is True:
            tab.clear()
        return _updates(tab, tab.views())

    script: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    page.load(None, None, [sidebar, parts.listing], js="() => nanochat.layout()", **script)
    parts.saved.change(None, parts.saved, parts.listing, js="(saved) => nanochat.keep(saved)", **script)
    flag = gr.Checkbox(visible=False)
    buttons["new"].click(create, flag, parts.outputs, js="() => { nanochat.fresh(); return [true]; }", **_QUIET).then(
        None, None, parts.listing, js="() => nanochat.listed()", **script
    )
    buttons["delete"].click(create, flag, parts.outputs, js="() => [nanochat.remove()]", **_QUIET).then(
        None, None, parts.listing, js="() => nanochat.listed()", **script
    )
    buttons["rename"].click(None, None, parts.listing, js="() => nanochat.rename()", **script)
    for kind in ("md", "json"):
        buttons[kind].click(None, None, None, js=f"() => nanochat.download('{kind}')", **script)
    for control in parts.controls:
        control.input(None, parts.controls, None, js="(...values) => nanochat.keepSettings(...values)", **script)


def _kept_values(text: object, number: int) -> list[Any] | None:
    """Return the values of the controls that the browser stored; None if there are none."""
    values = from_browser(text)
    if not isinstance(values, list) or len(values) != number:
        return None
    return None if any(isinstance(value, list | dict) for value in values) else values


def _answering(
    tab: BrowserTab, views: Iterator[list[TabView]], values: Sequence[Any], typed: str | None = None
) -> Iterator[_Updates]:
    """Yield updates for the views of an answer, without touching the text box, so that the user can type meanwhile.

    Generation starts with the first views. `typed` is restored if the message cannot be answered.
    """
    refilled: dict[str, Any] = {} if typed is None else {"value": typed}
    emptied: dict[str, Any] = {} if typed is None else {"value": ""}
    was_running, saved_s = False, 0.0
    try:
        _configure(tab, values)
        for shown in views:
            is_running, now_s = any(view.is_running for view in shown), time.monotonic()
            *chats, box, saved = _updates(tab, shown, **emptied)
            is_due = not is_running or now_s - saved_s >= SAVE_EVERY_S
            saved_s = now_s if is_due else saved_s
            yield [*chats, gr.skip() if was_running and is_running else box, saved if is_due else gr.skip()]
            refilled, emptied, was_running = {}, {}, is_running
    except UserError as error:
        _warn(error)
        yield _updates(tab, tab.views(), **refilled)


def _warn(error: UserError) -> None:
    gr.Warning(html.escape(str(error)), duration=6)


def _updates(tab: BrowserTab, views: Sequence[TabView], **box: Any) -> _Updates:
    is_running = any(view.is_running for view in views)
    others = [value for view in views for value in (view.status, view.tokens)]
    button = gr.Textbox(submit_btn=not is_running, stop_btn=is_running, **box)
    return [*(view.messages for view in views), *others, button, tab.saved()]


def build_app(
    page: gr.Blocks,
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
    problem: Callable[[], str | None] = lambda: None,
) -> fastapi.FastAPI:
    """Build the ASGI application of the page, which will be served on `host`.

    Values of the Host header in `allowed_hosts` are allowed in addition; "*" allows all. `problem` returns why the
    model cannot answer now; None if it can.
    """

    def refuse(status: int, message: str) -> Any:
        return PlainTextResponse(message, status)

    # the file of Gradio's default semi-bold weight lacks most letters
    font = (themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif")
    app = fastapi.FastAPI(openapi_url=None)
    boot = secrets.token_hex(8)  # another process does not know the open tabs

    @app.get("/health")
    def health() -> dict[str, str | None]:
        return {"boot": boot, "problem": problem()}

    app.add_middleware(PageGate, functions=page.fns)
    app.add_middleware(Gate, host=host, allowed_hosts=allowed_hosts, origins=(), refuse=refuse)  # the last is outermost
    page.has_launched = True  # enables Gradio's check of readable files; not set when the page is mounted
    return gr.mount_gradio_app(
        app,
        page,
        "/",
        theme=themes.Default(primary_hue="blue", font=font),
        css_paths=Path(__file__).with_name("chat_page.css"),
        head=f"<script>{Path(__file__).with_name('chat_page.js').read_text('utf-8')}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=False,  # user errors are shown by gr.Warning
    )

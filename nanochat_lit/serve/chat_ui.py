"""The chat page: Gradio in front of a `ChatModel`.

Only this machine is ever asked for anything: Gradio's analytics, run history and links are off, its fonts come with it, and a
Content-Security-Policy (serve/page_gate.py) forbids the browser to load from elsewhere, whatever a model writes (an image in
Markdown would tell its address who reads it).

A tab's conversation is kept here, by the tab's session. Answers end by their own `stop`, not by Gradio's cancellation of
events, which would lose what the page shows of them.
"""

import html
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.chat_model import ChatModel
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_tab import ChatTab, TabView
from nanochat_lit.serve.gate import Gate
from nanochat_lit.serve.page_gate import PageGate

if TYPE_CHECKING:
    import fastapi
    import gradio

MAX_TABS = 256
"""Conversations that are kept; beyond it the one that was idle longest is forgotten."""

MAX_TEMPERATURE = 2.0
MAX_TOP_K = 200

EXAMPLES = (
    "Who are you?",
    "What is 12 + 30?",
    "How many letters r are in strawberry?",
    "What is the opposite of hot?",
)

_Updates = tuple[Any, Any, Any]
"""Of the Chatbot, the text box and the status line."""

_SETTINGS = ("temperature", "top_k", "top_p", "max_new_tokens", "seed")

# hidden: no veil over the page; no limit: tabs do not wait for each other; private: a session is needed
_QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}

_CSS = """
.gradio-container > main { max-width: 880px !important; }
.gradio-container h3 { margin: 0; }
#chat { border-width: 0 !important; }
#chat, #chat .bubble-wrap { background: none; }
#chat .bubble-wrap { padding-top: 2.5em !important; }
#chat .message-markdown-disabled .md { white-space: pre-wrap; }
#chat .examples { grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)) !important; max-width: 640px; margin: 0 auto; }
#status { min-height: 1.4em; padding: 0 0.6em; }
#status * { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
#message textarea { font-size: var(--text-lg); padding: 0.7em; }
#message .input-container { align-items: center; }
#message button { margin: 0 0.4em 0 0; }
"""


class OpenTabs:
    """The tabs of all browsers.

    Args:
        model: Who answers.
        settings: What a conversation begins with.
    """

    def __init__(self, model: ChatModel, settings: SamplingParams) -> None:
        self._model, self._settings = model, settings
        self._tabs: OrderedDict[str, ChatTab] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: "gradio.Request") -> ChatTab:
        """The tab that a request comes from."""
        session = str(request.session_hash)
        with self._lock:
            tab = self._tabs.pop(session, None) or ChatTab(self._model, self._settings)
            self._tabs[session] = tab  # the newest is last
            if len(self._tabs) > MAX_TABS:
                self._tabs.popitem(last=False)[1].stop()
        return tab


def build_page(model: ChatModel, name: str, settings: SamplingParams, max_new_tokens: int) -> "gradio.Blocks":
    """The page as Gradio's Blocks.

    Args:
        model: Who answers.
        name: What the page calls it.
        settings: Where the sliders begin.
        max_new_tokens: Where the slider of new tokens ends.
    """
    import gradio as gr

    # analytics_enabled keeps a thread from asking for Gradio's newest version
    with gr.Blocks(title=f"{name} · nanochat-lit", analytics_enabled=False, fill_height=True) as page:
        with gr.Sidebar(position="right", open=False):
            controls, markdown = _controls(settings, max_new_tokens)
        gr.Markdown(f"### {name}")
        chatbot = gr.Chatbot(
            elem_id="chat",
            show_label=False,
            scale=1,
            editable="user",
            buttons=["copy", "copy_all"],
            placeholder=f"Say something to **{name}**, or begin with one of these.",
            examples=[{"text": text} for text in EXAMPLES],
            feedback_options=None,
            latex_delimiters=[],
            # off: a * b * c and whatever else a person types is shown as it was typed
            render_markdown=False,
        )
        status = gr.Markdown(elem_id="status")
        box = gr.Textbox(
            elem_id="message",
            show_label=False,
            container=False,
            placeholder="Message",
            submit_btn=True,
            autofocus=True,
            max_lines=8,
        )
        tabs, outputs = OpenTabs(model, settings), [chatbot, box, status]
        _connect_answers(tabs, chatbot, box, controls, outputs)
        _connect_changes(tabs, chatbot, box, markdown, outputs)
    return page


def _controls(settings: SamplingParams, max_new_tokens: int) -> tuple[list[Any], "gradio.Checkbox"]:
    """What `ChatTab.configure` needs, in the order of _SETTINGS and then the system prompt; and the switch for Markdown."""
    import gradio as gr

    controls = [
        gr.Slider(
            0, MAX_TEMPERATURE, settings.temperature, step=0.05, label="Temperature", info="0: the most likely token"
        ),
        gr.Slider(0, MAX_TOP_K, settings.top_k, step=1, label="Top-k", info="0: all tokens"),
        gr.Slider(0.05, 1, settings.top_p, step=0.05, label="Top-p", info="1: all tokens"),
        gr.Slider(1, max_new_tokens, min(settings.max_new_tokens, max_new_tokens), step=1, label="New tokens"),
        gr.Number(settings.seed, label="Seed", precision=0),
        gr.Textbox(label="System prompt", lines=3, placeholder="What the model is told before the first message"),
    ]
    for control in controls:
        # `SamplingParams` checks them: Gradio's own checks show an error in place of the conversation
        control.preprocess = lambda value: value
    return controls, gr.Checkbox(label="Show Markdown", value=False)


def _connect_answers(
    tabs: OpenTabs, chatbot: "gradio.Chatbot", box: "gradio.Textbox", controls: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Whatever asks for an answer."""
    import gradio as gr

    def send(request: gr.Request, text: str, *values: Any) -> Iterator[_Updates]:
        tab = tabs.of(request)
        if isinstance(text, str) and not text.strip():
            yield _updates(tab.view())
        else:
            yield from _answering(tab, tab.send(text), values, typed=text)

    def send_example(request: gr.Request, event: gr.SelectData, *values: Any) -> Iterator[_Updates]:
        tab = tabs.of(request)
        yield from _answering(tab, tab.send(event.value.get("text") if isinstance(event.value, dict) else None), values)

    def retry(request: gr.Request, *values: Any) -> Iterator[_Updates]:
        tab = tabs.of(request)
        yield from _answering(tab, tab.retry(), values)

    def edit(request: gr.Request, event: gr.EditData, *values: Any) -> Iterator[_Updates]:
        tab = tabs.of(request)
        index = event.index[0] if isinstance(event.index, list) and event.index else event.index
        yield from _answering(tab, tab.edit(index, event.value), values)

    box.submit(send, [box, *controls], outputs, **_QUIET)
    chatbot.example_select(send_example, controls, outputs, **_QUIET)
    chatbot.retry(retry, controls, outputs, **_QUIET)
    chatbot.edit(edit, controls, outputs, **_QUIET)


def _connect_changes(
    tabs: OpenTabs,
    chatbot: "gradio.Chatbot",
    box: "gradio.Textbox",
    markdown: "gradio.Checkbox",
    outputs: Sequence[Any],
) -> None:
    """Whatever changes a conversation at once."""
    import gradio as gr

    def undo(request: gr.Request) -> _Updates:
        tab = tabs.of(request)
        try:
            view, question = tab.undo()
        except UserError as error:
            _warn(error)
            return _updates(tab.view())
        return _updates(view, value=question)

    def clear(request: gr.Request) -> _Updates:
        return _updates(tabs.of(request).clear())

    def stop(request: gr.Request) -> None:
        tabs.of(request).stop()

    def render_markdown(request: gr.Request, is_on: bool) -> Any:
        tab = tabs.of(request)
        tab.is_markdown = is_on is True
        return gr.update(value=tab.view().messages, render_markdown=tab.is_markdown)

    chatbot.undo(undo, None, outputs, **_QUIET)
    chatbot.clear(clear, None, outputs, **_QUIET)
    box.stop(stop, None, None, **_QUIET)  # queued as all else: the gate passes no other way to call a function
    markdown.change(render_markdown, markdown, chatbot, **_QUIET)


def _answering(
    tab: ChatTab, views: Iterator[TabView], values: Sequence[Any], typed: str | None = None
) -> Iterator[_Updates]:
    """Updates for the views of an answer; the text box is left alone while it grows, for the next message to be typed.

    Args:
        tab: Where it is shown.
        views: Of the answer, which begins when the first one is taken.
        values: Of the controls.
        typed: What was in the text box; it comes back if it cannot be answered.
    """
    import gradio as gr

    refilled: dict[str, Any] = {} if typed is None else {"value": typed}
    emptied: dict[str, Any] = {} if typed is None else {"value": ""}
    was_running = False
    try:
        tab.configure(dict(zip(_SETTINGS, values[:-1], strict=True)), values[-1])
        for view in views:
            messages, box, status = _updates(view, **emptied)
            yield messages, gr.skip() if was_running and view.is_running else box, status
            refilled, emptied, was_running = {}, {}, view.is_running
    except UserError as error:
        _warn(error)
        yield _updates(tab.view(), **refilled)


def _warn(error: UserError) -> None:
    import gradio as gr

    gr.Warning(html.escape(str(error)), duration=6)


def _updates(view: TabView, **box: Any) -> _Updates:
    import gradio as gr

    return view.messages, gr.Textbox(submit_btn=not view.is_running, stop_btn=view.is_running, **box), view.status


def build_app(page: "gradio.Blocks", host: str = "127.0.0.1", allowed_hosts: Sequence[str] = ()) -> "fastapi.FastAPI":
    """The page as an ASGI application, for uvicorn.

    Args:
        page: Of `build_page`.
        host: Address it will be served on.
        allowed_hosts: Names in addition to those of that address; "*" allows all.
    """
    import fastapi
    import gradio as gr
    from gradio import themes
    from starlette.responses import PlainTextResponse

    def refuse(status: int, message: str) -> Any:
        return PlainTextResponse(message, status)

    # of the two weights that Gradio asks for by default, the half-bold one lacks most letters in its file
    font = (themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif")
    app = fastapi.FastAPI(openapi_url=None)
    app.add_middleware(PageGate, functions=page.fns)
    app.add_middleware(Gate, host=host, allowed_hosts=allowed_hosts, origins=(), refuse=refuse)  # the last is outermost
    page.has_launched = True  # Gradio checks which files may be read only then, and does not set it when it is mounted
    return gr.mount_gradio_app(
        app,
        page,
        "/",
        theme=themes.Default(primary_hue="blue", font=font),
        css=_CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=False,  # what a person should read is said by gr.Warning
    )

"""The chat page: Gradio in front of a `ChatModel`.

The page makes no third-party requests: Gradio's analytics, run history and links are off, and its fonts are bundled. A
Content-Security-Policy (serve/page_gate.py) prevents the browser from loading external resources, such as an image in a
model's Markdown, which would reveal the reader to its server.

Conversations are stored here by session. Answers end through their own `stop`, not through Gradio's event cancellation,
which would discard the text shown so far.
"""

import html
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.chat_session import ChatModel
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_tab import ChatTab, TabView
from nanochat_lit.serve.gate import Gate
from nanochat_lit.serve.page_gate import PageGate

if TYPE_CHECKING:
    import fastapi
    import gradio

MAX_TABS = 256
"""Maximum number of stored conversations; the least recently used one is dropped."""

MAX_TEMPERATURE = 2.0
MAX_TOP_K = 200

EXAMPLES = (
    "Who are you?",
    "What is 12 + 30?",
    "How many letters r are in strawberry?",
    "What is the opposite of hot?",
)

_Updates = tuple[Any, Any, Any]
"""Updates of the Chatbot, the text box and the status line."""

_SETTINGS = ("temperature", "top_k", "top_p", "max_new_tokens", "seed")

# hidden: no loading overlay; no limit: tabs run concurrently; private: functions need a session
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
    """All open tabs.

    Args:
        model: Model that answers.
        settings: Initial sampling settings.
    """

    def __init__(self, model: ChatModel, settings: SamplingParams) -> None:
        self._model, self._settings = model, settings
        self._tabs: OrderedDict[str, ChatTab] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: "gradio.Request") -> ChatTab:
        """Return the tab of a request."""
        session = str(request.session_hash)
        with self._lock:
            tab = self._tabs.pop(session, None) or ChatTab(self._model, self._settings)
            self._tabs[session] = tab  # most recently used last
            if len(self._tabs) > MAX_TABS:
                self._tabs.popitem(last=False)[1].stop()
        return tab


def build_page(model: ChatModel, name: str, settings: SamplingParams, max_new_tokens: int) -> "gradio.Blocks":
    """Build the page as Gradio Blocks.

    Args:
        model: Model that answers.
        name: Model name on the page.
        settings: Initial values of the controls.
        max_new_tokens: Maximum of the slider of new tokens.
    """
    import gradio as gr

    # analytics_enabled=False also disables the thread that checks for a new Gradio version
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
            # off: user input such as a * b * c is shown literally
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
    """Return the controls for `ChatTab.configure` (_SETTINGS in order, then the system prompt) and for Markdown."""
    import gradio as gr

    controls = [
        gr.Slider(0, MAX_TEMPERATURE, settings.temperature, step=0.05, label="Temperature", info="0: greedy"),
        gr.Slider(0, MAX_TOP_K, settings.top_k, step=1, label="Top-k", info="0: all tokens"),
        gr.Slider(0.05, 1, settings.top_p, step=0.05, label="Top-p", info="1: all tokens"),
        gr.Slider(1, max_new_tokens, min(settings.max_new_tokens, max_new_tokens), step=1, label="New tokens"),
        gr.Number(settings.seed, label="Seed", precision=0),
        gr.Textbox(label="System prompt", lines=3, placeholder="Instructions before the first message"),
    ]
    for control in controls:
        # checked by `SamplingParams`; Gradio's own checks would replace the conversation by an error
        control.preprocess = lambda value: value
    return controls, gr.Checkbox(label="Show Markdown", value=False)


def _connect_answers(
    tabs: OpenTabs, chatbot: "gradio.Chatbot", box: "gradio.Textbox", controls: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Connect the events that generate an answer."""
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
    """Connect the events that change the conversation without generating."""
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
    box.stop(stop, None, None, **_QUIET)  # queued like the others: the gate blocks other ways to call a function
    markdown.change(render_markdown, markdown, chatbot, **_QUIET)


def _answering(
    tab: ChatTab, views: Iterator[TabView], values: Sequence[Any], typed: str | None = None
) -> Iterator[_Updates]:
    """Yield updates for the views of an answer, without touching the text box, so that the user can type meanwhile.

    Args:
        tab: Tab of the answer.
        views: Views of the answer; generation starts with the first one.
        values: Values of the controls.
        typed: Contents of the text box; restored if the message cannot be answered.
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
    """Build the ASGI application of the page.

    Args:
        page: Result of `build_page`.
        host: Address that the page will be served on.
        allowed_hosts: Allowed values of the Host header in addition to the address; "*" allows all.
    """
    import fastapi
    import gradio as gr
    from gradio import themes
    from starlette.responses import PlainTextResponse

    def refuse(status: int, message: str) -> Any:
        return PlainTextResponse(message, status)

    # the file of Gradio's default semi-bold weight lacks most letters
    font = (themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif")
    app = fastapi.FastAPI(openapi_url=None)
    app.add_middleware(PageGate, functions=page.fns)
    app.add_middleware(Gate, host=host, allowed_hosts=allowed_hosts, origins=(), refuse=refuse)  # the last is outermost
    page.has_launched = True  # enables Gradio's check of readable files; not set when the page is mounted
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
        show_error=False,  # user errors are shown by gr.Warning
    )

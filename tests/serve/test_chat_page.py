"""The chat page in a real browser: Debian's chromium, driven by playwright. Screenshots stay in build/screenshots."""

import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nanochat_lit.engine.chat_session import ChatSession
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.engine_chat import EngineChat
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_tab import typed_text

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WAIT_MS = 15_000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
    pytest.mark.skipif(sys.platform == "win32", reason="the browser's path is looked up as on Unix"),
]

_calls_outside: list[tuple] = []


def _watch(event: str, args: tuple) -> None:
    """Audit hook: what Python connects to or looks up elsewhere. It cannot be removed, so it only takes notes."""
    if event == "socket.getaddrinfo" and args[0] not in (None, "127.0.0.1", "localhost", "0.0.0.0", "::1", "::"):
        _calls_outside.append((event, args[:2]))
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1"):
        _calls_outside.append((event, args[1]))


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Serve the page for a model from a thread; returns its address."""
    pytest.importorskip("gradio", reason="needs pip install '.[serve]'")
    sys.addaudithook(_watch)
    import uvicorn

    from nanochat_lit.serve.chat_tab import ShownModel
    from nanochat_lit.serve.chat_ui import build_app, build_page

    running = []

    def start(*models: object, port: int = 0, problem: Callable[[], str | None] = lambda: None) -> str:
        shown = [
            ShownModel(model, name, f"About <b>{name}</b>")
            for model, name in zip(models, ("scripted", "other"), strict=False)
        ]
        app = build_app(build_page(shown, SamplingParams(temperature=0.5), max_new_tokens=512), problem=problem)
        listener = socket.create_server(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def stop() -> None:
        for server, thread in running:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()
        running.clear()

    start.stop = stop
    yield start
    stop()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


class Chat:
    """A tab, as a person uses it."""

    def __init__(self, browser, url: str, **options: object) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 760}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.box = self.page.locator("#message textarea")
        self.box.wait_for()

    def send(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def wait_for(self, pattern: str) -> None:
        self.page.locator("#chat-0").get_by_text(re.compile(pattern)).first.wait_for()

    def wait_until_done(self) -> None:
        self.page.locator("#message [data-testid=submit-button]").wait_for()

    def click(self, label: str) -> None:
        self.page.locator(f"#chat-0 button[aria-label='{label}']").last.click()

    def stop(self) -> None:
        self.page.locator("#message [data-testid=stop-button]").click()
        self.wait_until_done()

    def reload(self) -> None:
        known = list(self.complaints)
        self.page.reload()
        self.box.wait_for()
        # Gradio logs that the old page's connection ended
        self.complaints = known + [
            text for text in self.complaints[len(known) :] if "errored out" not in text and "AbortError" not in text
        ]

    def listed(self) -> list[str]:
        return self.page.locator("#listing label").all_inner_texts()

    def close_messages(self) -> None:
        """They lie over the corner of the conversation for some seconds."""
        self.page.evaluate("document.querySelectorAll('.toast-close').forEach(button => button.click())")
        self.page.wait_for_function("document.querySelectorAll('.toast-close').length == 0")

    def said(self, who: str) -> list[str]:
        return [text.strip() for text in self.page.locator(f"#chat-0 [data-testid={who}]").all_inner_texts()]

    def status(self) -> str:
        return self.page.locator("#status-0").inner_text().strip()


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Callable[[Chat, str], None]:
    folder = request.config.rootpath / "build" / "screenshots"

    def take(chat: Chat, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        chat.page.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture
def model(scripted_model):
    return scripted_model(pause_s=0.02)


def test_a_conversation(serve, browser, model, screenshots) -> None:
    chat = Chat(browser, serve(model))
    screenshots(chat, "empty")
    chat.page.get_by_role("button", name="Who are you?").click()
    chat.wait_for(r"seed 0")
    chat.wait_until_done()
    assert chat.said("user") == ["Who are you?"]
    assert chat.status() == "2 tokens · 100 tokens/s"

    # the calculator is folded: its title is seen, and its content when it is opened
    chat.send("a sum")
    chat.wait_for("42\\.")
    chat.wait_until_done()
    assert [typed_text(text) for text in chat.said("bot")[1:]] == ["It is", "Calculator\n\n12+30 = 42", "42."]
    assert chat.page.locator("#chat-0").get_by_text("Calculator").is_visible()
    screenshots(chat, "calculator")

    # the answer grows, and stops when told; what was said stays
    chat.send("endless")
    chat.wait_for("more more")
    chat.box.fill("typed while it goes on")
    assert model.num_running == 1
    chat.stop()
    assert model.num_running == 0
    assert chat.status().endswith("stopped")
    assert chat.box.input_value() == "typed while it goes on"
    assert "more more" in chat.said("bot")[-1]

    # retry draws from another seed
    chat.click("Retry")
    chat.wait_for("seed 3")
    chat.stop()
    assert chat.said("user") == ["Who are you?", "a sum", "endless"]

    # undo puts the question back into the box
    chat.click("Undo")
    chat.page.wait_for_function("document.querySelectorAll('#chat-0 [data-testid=user]').length == 2")
    assert chat.box.input_value() == "endless"

    # editing a question forgets what followed it
    chat.page.locator("#chat-0 button[aria-label=Edit]").first.click()
    chat.page.locator("#chat-0 textarea").fill("a < b*c*d <b>, ok?")
    chat.click("Submit")
    chat.wait_for("seed 4")
    chat.wait_until_done()
    assert typed_text(chat.said("user")[0]) == "a < b*c*d <b>, ok?"
    assert model.asked[-1][0] == [{"role": "user", "content": "a < b*c*d <b>, ok?"}]
    screenshots(chat, "edited")

    # what cannot be answered is told, and comes back into the box
    chat.send("fail")
    chat.page.get_by_text("this cannot be answered: it's <b>").wait_for()
    assert chat.box.input_value() == "fail"
    chat.send("break")
    chat.page.get_by_text("the model fell silent").wait_for()
    assert chat.said("bot")[-1] == "half of"
    chat.close_messages()

    chat.page.get_by_role("button", name="New chat").click()
    chat.page.get_by_text("About <b>scripted</b>").wait_for()
    chat.send("hello")
    chat.wait_for("hello! \\(seed 0\\)")
    assert model.asked[-1][0] == [{"role": "user", "content": "hello"}]
    assert chat.complaints == []
    assert not [url for url in chat.requests if not url.startswith(chat.page.url)]
    assert _calls_outside == []


def test_settings_and_system_prompt(serve, browser, model, screenshots) -> None:
    chat = Chat(browser, serve(model))
    chat.page.get_by_label("Toggle Sidebar").last.click()
    for label, value in (("Temperature", "1.25"), ("Top-k", "7"), ("Top-p", "0.9"), ("New tokens", "99")):
        chat.page.get_by_label(f"number input for {label}").fill(value)
    chat.page.get_by_label("Seed").fill("11")
    chat.page.get_by_label("System prompt").fill("Be brief.")
    chat.page.wait_for_timeout(500)  # it slides
    screenshots(chat, "settings")
    chat.send("hello")
    chat.wait_for("seed 11")
    messages, settings = model.asked[-1]
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert settings == SamplingParams(temperature=1.25, top_k=7, top_p=0.9, max_new_tokens=99, seed=11)


def test_markdown_of_answers_loads_nothing_from_elsewhere(serve, browser, model) -> None:
    chat = Chat(browser, serve(model))
    text = "**bold** 2*3*4 ![spy](http://192.0.2.1/spy.png) <img src='http://192.0.2.1/spy2.png'>"
    chat.send(text)
    chat.wait_for("seed 0")
    chat.wait_until_done()
    bot, asked = (chat.page.locator(f"#chat-0 [data-testid={who}]") for who in ("bot", "user"))
    assert bot.locator("strong").inner_text() == "bold"
    assert "2*3*4" in bot.inner_text().replace("\u200a", ""), "a product is no emphasis"
    assert bot.locator("img").count() == 1, "of the Markdown; HTML is text"
    assert chat.page.evaluate("[...document.querySelectorAll('#chat-0 img')].every(image => image.naturalWidth == 0)")
    assert asked.locator("strong, em, img").count() == 0
    assert typed_text(asked.inner_text()) == text, "a person's text is shown as it is"
    time.sleep(0.3)
    assert chat.complaints
    assert all("Content Security Policy" in complaint for complaint in chat.complaints)
    chat.page.get_by_label("Toggle Sidebar").last.click()
    chat.page.get_by_label("Show Markdown").uncheck()
    chat.page.wait_for_function("document.querySelectorAll('#chat-0 strong, #chat-0 img').length == 0")
    assert "**bold**" in bot.inner_text()


def test_mistakes_leave_the_conversation_where_it_was(serve, browser, model) -> None:
    chat = Chat(browser, serve(model))
    chat.send("# hello <h1>big</h1>")
    chat.wait_for("seed 0")
    chat.wait_until_done()
    for nothing in ("", "  "):
        chat.send(nothing)
        chat.page.wait_for_timeout(300)
        assert len(chat.said("user")) == 1
    chat.page.get_by_label("Toggle Sidebar").last.click()
    chat.page.get_by_label("Seed", exact=True).fill("-3")
    chat.page.get_by_label("number input for Temperature").fill("0")
    chat.send("again")
    chat.wait_for(f"seed {2**63 - 2}")  # the second answer
    chat.wait_until_done()
    chat.click("Retry")
    chat.page.locator("#status-0").get_by_text("the answer is identical").wait_for()
    assert chat.page.locator("#chat-0 [data-testid=bot] h1").count() == 1, "of the Markdown"
    assert chat.page.locator("#chat-0 [data-testid=user] h1").count() == 0
    assert "<\u2060h1>big<\u2060/h1>" in chat.said("user")[0]
    assert chat.page.locator("#chat-0").get_by_text("Error", exact=True).count() == 0
    assert chat.complaints == []


def test_two_tabs_at_once(serve, browser, model) -> None:
    url = serve(model)
    one, two = Chat(browser, url), Chat(browser, url)
    one.send("endless one")
    one.wait_for("one! .* more")
    two.send("endless two")
    two.wait_for("two! .* more")
    assert model.num_running == 2, "a tab does not wait for the other"
    one.stop()
    assert model.num_running == 1
    assert one.said("user") == ["endless one"]
    assert two.said("user") == ["endless two"]
    two.context.close()  # a closed tab frees its place
    deadline = time.monotonic() + 20
    while model.num_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert model.num_running == 0


def test_an_engine_in_this_process(serve, browser, random_model, tokenizer) -> None:
    engine = Engine(random_model(sequence_len=128), tokenizer, num_slots=2)
    with EngineChat(engine) as model:
        chat = Chat(browser, serve(model))
        chat.send("hello")
        chat.page.locator("#status-0").get_by_text("tokens/s").wait_for()
        chat.wait_until_done()
        assert chat.said("user") == ["hello"]
        assert chat.complaints == []
    assert engine.num_free == 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dark", {"color_scheme": "dark"}),
        ("narrow", {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}),
    ],
)
def test_dark_and_narrow_screens(serve, browser, model, screenshots, name: str, options: dict) -> None:
    chat = Chat(browser, serve(model), **options)
    chat.send("a sum")
    chat.wait_for("42\\.")
    chat.wait_until_done()
    screenshots(chat, name)
    width = chat.page.evaluate("document.documentElement.scrollWidth")
    assert width <= chat.page.viewport_size["width"], "nothing is cut off at the side"
    red, green, blue = chat.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert (max(red, green, blue) < 60) == (name == "dark")


def wait_for(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_conversations_are_kept_listed_renamed_and_deleted(serve, browser, model, screenshots) -> None:
    chat = Chat(browser, serve(model))
    chat.page.get_by_label("Toggle Sidebar").last.click()
    chat.page.get_by_label("System prompt").fill("Be brief.")
    chat.page.get_by_label("number input for Temperature").fill("0.25")
    chat.send("one <b>")
    chat.wait_for("seed 0")
    chat.send("two")
    chat.wait_for("seed 1")
    chat.wait_until_done()
    said = chat.said("user"), chat.said("bot")
    wait_for(lambda: chat.listed() == ["one <b>"])
    chat.reload()
    chat.wait_for("seed 1")
    assert (chat.said("user"), chat.said("bot")) == said
    wait_for(lambda: chat.page.get_by_label("System prompt").input_value() == "Be brief.")
    chat.send("three")  # the model is sent all of it, with the settings
    chat.wait_for("seed 2")
    messages, settings = model.asked[-1]
    assert [message["content"] for message in messages if message["role"] != "assistant"] == [
        *("Be brief.", "one <b>", "two", "three")
    ]
    assert settings.temperature == 0.25

    # another one; the first is opened again from the list
    chat.page.get_by_role("button", name="New chat").click()
    chat.page.get_by_text("About <b>scripted</b>").wait_for()
    chat.send("other")
    chat.wait_for("other!")
    wait_for(lambda: chat.listed() == ["other", "one <b>"])
    screenshots(chat, "list")
    chat.page.locator("#listing label").last.click()
    chat.wait_for("three!")
    chat.page.once("dialog", lambda dialog: dialog.accept("First <i>x</i>"))
    chat.page.get_by_role("button", name="Rename").click()
    wait_for(lambda: chat.listed() == ["other", "First <i>x</i>"])
    for answer, left in (("dismiss", ["other", "First <i>x</i>"]), ("accept", ["other"])):
        asked: list[str] = []

        def reply(dialog, answer=answer, asked=asked) -> None:
            asked.append(dialog.message)
            getattr(dialog, answer)()

        chat.page.once("dialog", reply)
        chat.page.get_by_role("button", name="Delete").click()
        wait_for(lambda left=left: chat.listed() == left)
        assert asked == ['Delete "First <i>x</i>"? This cannot be undone.']
    chat.page.get_by_text("About <b>scripted</b>").wait_for()
    chat.reload()
    assert chat.said("user") == []

    # a question that is taken back leaves nothing; the other tab has the list, and its own conversation
    chat.send("gone")
    chat.wait_for("gone!")
    chat.wait_until_done()
    chat.click("Undo")
    wait_for(lambda: chat.listed() == ["other"])
    chat.page.evaluate("localStorage.setItem('nanochat-lit:settings', '{')")
    chat.reload()
    wait_for(lambda: chat.listed() == ["other"])
    assert chat.complaints == []


@pytest.mark.slow
def test_a_growing_answer_survives_a_reload(serve, browser, model) -> None:
    chat = Chat(browser, serve(model))
    chat.send("endless")
    chat.wait_for("more more")
    chat.page.wait_for_timeout(1500)  # it is stored every second
    chat.reload()
    chat.wait_for("more more")
    wait_for(lambda: model.num_running == 0)
    chat.send("next")
    chat.wait_for("next!")
    assert [message["role"] for message in model.asked[-1][0]] == ["user", "assistant", "user"]


@pytest.mark.slow
def test_exports(serve, browser, model, tmp_path) -> None:
    chat = Chat(browser, serve(model, model))
    chat.page.on("dialog", lambda dialog: dialog.accept())
    chat.page.get_by_role("button", name="Export JSON").click()  # of nothing: a message
    chat.send("a sum")
    chat.wait_for("42\\.")
    chat.wait_until_done()
    wait_for(lambda: chat.listed() == ["a sum"])
    downloads = []
    chat.page.on("download", lambda download: downloads.append(download))
    for name in ("Export JSON", "Export Markdown"):
        chat.page.get_by_role("button", name=name).click()
    wait_for(lambda: chat.page.evaluate("1") and len(downloads) == 4)
    assert [one.suggested_filename for one in downloads] == [
        *("a-sum-1.json", "a-sum-2.json", "a-sum-1.md", "a-sum-2.md")
    ]
    for one in downloads:
        one.save_as(tmp_path / one.suggested_filename)
    loaded = ChatSession.load(tmp_path / "a-sum-1.json")  # as /load of the terminal does
    assert loaded.messages[0] == {"role": "user", "content": "a sum"}
    assert [part["text"] for part in loaded.messages[1]["content"]] == ["It is ", "12+30", "42", "42."]
    assert loaded.settings.temperature == 0.5
    text = (tmp_path / "a-sum-1.md").read_text(encoding="utf-8")
    assert text == "# a sum\n\n**You:** a sum\n\n**Model:** It is  `12+30` = 42\n\n42.\n"


@pytest.mark.slow
def test_stored_conversations_are_untrusted(serve, browser, model) -> None:
    chat = Chat(browser, serve(model))
    attack = "<img src=x onerror='window.attacked = 1'>"
    chat.page.evaluate(
        """attack => {
            const chats = text => [{messages: [{role: "user", content: text}, {role: "assistant", content: [
                {type: "text", text}, {type: "python", text}, {type: "python_output", text}]}], settings: {}}];
            const put = (id, value) => localStorage.setItem("nanochat-lit:chat:" + id, JSON.stringify(value));
            put("a", {title: attack, when: 9, chats: chats(attack)});
            put("b", {title: "bad", when: 8, chats: [{messages: 3, settings: {}}]});
            put("c", {title: 7, when: "x", chats: []});
            localStorage.setItem("nanochat-lit:chat:d", "{");
            localStorage.setItem("nanochat-lit:settings", JSON.stringify([[attack], 9e999, "hot", {}, -1, 5, 6, 7]));
        }""",
        attack,
    )
    chat.reload()
    wait_for(lambda: chat.listed() == [attack, "bad", "7"])
    chat.page.locator("#listing label").first.click()
    chat.wait_for("onerror")
    assert typed_text(chat.said("bot")[0]) == attack
    for index in (1, 2):
        chat.page.locator("#listing label").nth(index).click()
        chat.page.locator(".toast-body").get_by_text("stored conversation").first.wait_for()
        chat.close_messages()
        assert typed_text(chat.said("user")[0]) == attack, "the open one stays"
    assert chat.page.evaluate("window.attacked") is None
    assert chat.page.locator("#chat-0 img, #listing img").count() == 0
    chat.page.get_by_role("button", name="New chat").click()
    chat.send("hello")
    chat.wait_for("hello! \\(seed 0\\)")
    assert chat.complaints == []


@pytest.mark.slow
def test_the_server_is_gone_and_back(serve, browser, model, screenshots) -> None:
    serve.stop()
    problems: list[str | None] = [None]
    url = serve(model, problem=lambda: problems[0])
    port = int(url.rstrip("/").rpartition(":")[2])
    chat = Chat(browser, url)
    notice = chat.page.locator("#notice")
    chat.send("hello")
    chat.wait_for("seed 0")
    chat.wait_until_done()
    problems[0] = "no server responds at <b>"
    notice.get_by_text("no server responds at <b>").wait_for()  # the server behind the page
    problems[0] = None
    notice.wait_for(state="hidden")
    chat.box.fill("typed meanwhile")
    serve.stop()
    notice.get_by_text("The server does not respond").wait_for()
    screenshots(chat, "server_gone")
    serve(model, port=port)
    notice.wait_for(state="hidden")
    chat.wait_for("seed 0")
    wait_for(lambda: chat.box.input_value() == "typed meanwhile")
    chat.box.press("Enter")
    chat.wait_for("typed meanwhile! \\(seed 1\\)")
    assert len(model.asked[-1][0]) == 3, "the new process has the conversation"


@pytest.mark.slow
def test_two_models_side_by_side(serve, browser, model, scripted_model, screenshots) -> None:
    other = scripted_model(pause_s=0.1)  # slower: each has its own pace
    chat = Chat(browser, serve(model, other), viewport={"width": 1440, "height": 900})
    left, right = (chat.page.locator(f"#chat-{index} [data-testid=bot]") for index in (0, 1))
    one, two = chat.page.locator("#chat-0").bounding_box(), chat.page.locator("#chat-1").bounding_box()
    assert one["y"] == two["y"]
    assert one["x"] + one["width"] <= two["x"]
    chat.send("a sum")
    right.get_by_text("42.").last.wait_for()
    chat.wait_until_done()
    assert (typed_text(left.last.inner_text()), typed_text(right.last.inner_text())) == ("42.", "42.")
    chat.send("endless")
    for index in (0, 1):
        chat.page.locator(f"#chat-{index}").get_by_text("more more").wait_for()
    chat.stop()
    assert model.num_running == other.num_running == 0
    chat.page.locator("#chat-1 button[aria-label='Retry']").last.click()  # of both
    for index in (0, 1):
        chat.page.locator(f"#chat-{index}").get_by_text("seed 2").wait_for()
    chat.stop()
    chat.page.locator("#chat-1 button[aria-label=Edit]").last.click()
    chat.page.locator("#chat-1 textarea").fill("short")
    chat.page.locator("#chat-1 button[aria-label=Submit]").click()
    for index in (0, 1):
        chat.page.locator(f"#chat-{index}").get_by_text("short! (seed 3)").wait_for()
    chat.wait_until_done()
    screenshots(chat, "side_by_side")
    chat.reload()
    for index in (0, 1):
        chat.page.locator(f"#chat-{index}").get_by_text("short! (seed 3)").wait_for()
    assert chat.complaints == []


@pytest.mark.slow
def test_probabilities_of_tokens(serve, browser, model, screenshots) -> None:
    chat = Chat(browser, serve(model))
    chat.send("hello")
    chat.wait_for("seed 0")
    assert chat.page.locator("#tokens-0 span").count() == 0
    chat.page.get_by_label("Toggle Sidebar").last.click()
    chat.page.get_by_label("Show probabilities of tokens").check()
    chat.send("again")
    spans = chat.page.locator("#tokens-0 p span")
    spans.first.wait_for()
    assert spans.all_inner_texts() == ["<b>", " x"]
    tooltip = "element => getComputedStyle(element, '::after').content"
    assert spans.first.evaluate(tooltip) == "none"
    spans.first.hover()
    assert "60.7%  <b>" in spans.first.evaluate(tooltip)
    assert "13.5%" in spans.first.evaluate(tooltip)
    spans.last.focus()  # by the keyboard, or a touch
    assert "5.0%" in spans.last.evaluate(tooltip)
    screenshots(chat, "probabilities")
    assert chat.complaints == []


@pytest.mark.slow
def test_keyboard(serve, browser, model) -> None:
    chat = Chat(browser, serve(model))
    assert chat.page.evaluate("document.activeElement.tagName") == "TEXTAREA", "ready to type"
    chat.page.keyboard.type("endless")
    chat.page.keyboard.press("Shift+Enter")
    chat.page.keyboard.type("second line")
    assert model.asked == []
    chat.page.keyboard.press("Enter")
    chat.wait_for("more more")
    assert model.asked[-1][0][-1]["content"] == "endless\nsecond line"
    chat.page.keyboard.press("Escape")
    chat.wait_until_done()
    assert model.num_running == 0
    for _ in range(8):  # whatever has the focus, it is seen
        chat.page.keyboard.press("Shift+Tab")
        style = chat.page.evaluate(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert style == ["solid", "2px"], chat.page.evaluate("document.activeElement.outerHTML")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(serve, browser, model, screenshots, width: int, scheme: str) -> None:
    is_phone = width == 390
    options = {"viewport": {"width": width, "height": 844 if is_phone else 900}, "color_scheme": scheme}
    chat = Chat(browser, serve(model), is_mobile=is_phone, has_touch=is_phone, **options)
    chat.page.wait_for_timeout(700)  # the list slides in
    screenshots(chat, f"welcome_{width}_{scheme}")
    greeting = chat.page.locator("#chat-0 .placeholder").bounding_box()
    cards = [card.bounding_box() for card in chat.page.locator("#chat-0 .example").all()]
    assert len(cards) >= 4
    assert 0 <= cards[0]["y"] - (greeting["y"] + greeting["height"]) < 60, "no void between"
    assert all(card["x"] >= 0 and card["x"] + card["width"] <= width for card in cards), "no card is cut"
    chat.send("word " * 200)
    chat.wait_for("seed 0")
    chat.wait_until_done()
    screenshots(chat, f"chat_{width}_{scheme}")
    bot = chat.page.locator("#chat-0 [data-testid=bot]").bounding_box()
    assert bot["width"] <= 780, "a reading width"
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= width
    asked = chat.page.locator("#chat-0 [data-testid=user]").first
    asked.scroll_into_view_if_needed()
    assert not chat.page.locator("#chat-0 .top-panel").is_visible(), "no toolbar over the first question"
    labels = [
        button.evaluate("element => getComputedStyle(element, '::before').content")
        for button in chat.page.locator("#chat-0 button:is([aria-label=Retry], [aria-label=Undo])").all()
    ]
    assert labels == ['"Retry"', '"Undo"'], "they are told apart"
    actions = chat.page.locator("#chat-0 .message-buttons")
    assert [actions.nth(index).evaluate("element => getComputedStyle(element).opacity") for index in (0, 1)] == [
        *("1" if is_phone else "0", "1")
    ]

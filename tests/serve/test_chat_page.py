"""The chat page in a real browser: Debian's chromium, driven by playwright. Screenshots stay in build/screenshots."""

import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.engine_chat import EngineChat
from nanochat_lit.engine.sampling_params import SamplingParams

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

    from nanochat_lit.serve.chat_ui import build_app, build_page

    running = []

    def start(model: object) -> str:
        app = build_app(build_page(model, "scripted", SamplingParams(temperature=0.5), max_new_tokens=512))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(10)
        assert not thread.is_alive()


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
        self.context = browser.new_context(**{"viewport": {"width": 1000, "height": 760}, **options})
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
        self.page.locator("#chat").get_by_text(re.compile(pattern)).first.wait_for()

    def wait_until_done(self) -> None:
        self.page.locator("#message [data-testid=submit-button]").wait_for()

    def click(self, label: str) -> None:
        self.page.locator(f"#chat button[aria-label='{label}']").last.click()

    def stop(self) -> None:
        self.page.locator("#message [data-testid=stop-button]").click()
        self.wait_until_done()

    def close_messages(self) -> None:
        """They lie over the corner of the conversation for some seconds."""
        self.page.evaluate("document.querySelectorAll('.toast-close').forEach(button => button.click())")
        self.page.wait_for_function("document.querySelectorAll('.toast-close').length == 0")

    def said(self, who: str) -> list[str]:
        return [text.strip() for text in self.page.locator(f"#chat [data-testid={who}]").all_inner_texts()]

    def status(self) -> str:
        return self.page.locator("#status").inner_text().strip()


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
    assert chat.said("bot")[1:] == ["It is", "Calculator\n12+30 = 42", "42."]
    assert chat.page.locator("#chat").get_by_text("Calculator").is_visible()
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
    chat.page.wait_for_function("document.querySelectorAll('#chat [data-testid=user]').length == 2")
    assert chat.box.input_value() == "endless"

    # editing a question forgets what followed it
    chat.page.locator("#chat button[aria-label=Edit]").first.click()
    chat.page.locator("#chat textarea").fill("a < b*c*d <b>, ok?")
    chat.click("Submit")
    chat.wait_for("seed 4")
    chat.wait_until_done()
    assert chat.said("user") == ["a < b*c*d <b>, ok?".replace("<b>", "<\u2060b>")]
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

    chat.click("Clear")
    chat.page.get_by_text("Say something to").wait_for()
    chat.send("hello")
    chat.wait_for("hello! \\(seed 0\\)")
    assert model.asked[-1][0] == [{"role": "user", "content": "hello"}]
    assert chat.complaints == []
    assert not [url for url in chat.requests if not url.startswith(chat.page.url)]
    assert _calls_outside == []


def test_settings_and_system_prompt(serve, browser, model, screenshots) -> None:
    chat = Chat(browser, serve(model))
    chat.page.get_by_label("Toggle Sidebar").click()
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


def test_markdown_on_demand_loads_nothing_from_elsewhere(serve, browser, model) -> None:
    chat = Chat(browser, serve(model))
    text = "**bold** ![spy](http://192.0.2.1/spy.png) <img src='http://192.0.2.1/spy2.png'>"
    chat.send(text)
    chat.wait_for("seed 0")
    chat.wait_until_done()
    assert text.replace("<img", "<\u2060img") in chat.said("bot")[0]
    chat.page.get_by_label("Toggle Sidebar").click()
    chat.page.get_by_label("Show Markdown").check()
    chat.page.locator("#chat strong").first.wait_for()
    time.sleep(0.3)
    assert chat.complaints
    assert all("Content Security Policy" in complaint for complaint in chat.complaints)
    assert chat.page.evaluate("document.querySelectorAll('#chat img').length") > 0
    assert chat.page.evaluate("[...document.querySelectorAll('#chat img')].every(image => image.naturalWidth == 0)")


def test_mistakes_leave_the_conversation_where_it_was(serve, browser, model) -> None:
    chat = Chat(browser, serve(model))
    chat.send("# hello <h1>big</h1>")
    chat.wait_for("seed 0")
    chat.wait_until_done()
    for nothing in ("", "  "):
        chat.send(nothing)
        chat.page.wait_for_timeout(300)
        assert len(chat.said("user")) == 1
    chat.page.get_by_label("Toggle Sidebar").click()
    chat.page.get_by_label("Seed", exact=True).fill("-3")
    chat.page.get_by_label("number input for Temperature").fill("0")
    chat.send("again")
    chat.wait_for(f"seed {2**63 - 2}")  # the second answer
    chat.wait_until_done()
    chat.click("Retry")
    chat.page.locator("#status").get_by_text("the answer is identical").wait_for()
    chat.page.get_by_label("Show Markdown").check()
    chat.page.locator("#chat [data-testid=user] h1").first.wait_for()  # of the Markdown
    assert "<\u2060h1>big<\u2060/h1>" in chat.said("user")[0]
    assert chat.page.locator("#chat").get_by_text("Error", exact=True).count() == 0
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
        chat.page.locator("#status").get_by_text("tokens/s").wait_for()
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

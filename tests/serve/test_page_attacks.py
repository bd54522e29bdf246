"""What a visitor of the chat page must not get: files, other endpoints of Gradio, an end of the page for everyone."""

import asyncio
import http.client
import json
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs pip install '.[serve]'")

from starlette.routing import Mount

from nanochat_lit.engine.sampling_params import CHAT_PARAMS

SECRET = "the secret of this machine"
FILE = {"path": "", "meta": {"_type": "gradio.FileData"}}
CONTROLS = [0.0, 50, 1.0, 40, 0, "", True, False]


class Page:
    """A page that is served."""

    def __init__(self, port: int, functions: list[int], paths: set[str]) -> None:
        self.port, self.functions, self.paths = port, functions, paths

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """One request; a body that is not bytes is sent as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, raw, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def call(self, fn_index: int, data: Any, **others: Any) -> tuple[int, str]:
        """Put a call into Gradio's queue; the status, and all that is said of it."""
        call = {"data": data, "fn_index": fn_index, "session_hash": "abc", **others}
        status, text = self.ask("POST", "/gradio_api/queue/join", call)
        return (status, text) if status != 200 else self.ask("GET", "/gradio_api/queue/data?session_hash=abc")


@pytest.fixture(scope="module")
def page(scripted_model, tmp_path_factory) -> Iterator[Page]:
    import uvicorn

    from nanochat_lit.serve.chat_tab import ShownModel
    from nanochat_lit.serve.chat_ui import build_app, build_page
    from nanochat_lit.serve.gate import listen, uvicorn_config

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("GRADIO_TEMP_DIR", str(cache))

        async def build() -> Any:  # where there is no loop, Gradio makes some and leaves them open
            page = build_page([ShownModel(scripted_model(), "scripted")], CHAT_PARAMS, max_new_tokens=512)
            return page, build_app(page)

        blocks, app = asyncio.run(build())
        routes = [route for mount in app.routes if isinstance(mount, Mount) for route in mount.app.routes]
        paths = {re.sub(r"[{}]|:path", "", path) for route in routes if (path := getattr(route, "path", ""))}
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn_config(app, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Page(listener.getsockname()[1], list(blocks.fns), paths)
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        assert not [path for path in cache.rglob("*") if path.is_file()], "nothing of a visitor is kept"


def test_the_page_is_there(page):
    status, text = page.ask("GET", "/")
    assert (status, "scripted" in text) == (200, True)
    assert "hello! " in page.call(0, ["hello", *CONTROLS])[1]


def test_health(page):
    status, text = page.ask("GET", "/health")
    assert (status, json.loads(text)["problem"]) == (200, None)
    assert json.loads(page.ask("GET", "/health")[1]) == json.loads(text), "one process"


def test_files_are_not_read_from_any_place_of_a_call(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = Path("secret.txt")
    secret.write_text(SECRET)
    for path in (str(secret.resolve()), "secret.txt", "http://127.0.0.1:1/x"):
        bad = {**FILE, "path": path, "url": path}
        for fn_index in range(9):
            for data in ([bad], [bad, *CONTROLS], ["x", *CONTROLS[:-1], [bad]], bad, [[bad]] * 7, {"a": bad}):
                assert page.call(fn_index, data)[0] == 400, (fn_index, data)
    for fn_index in page.functions:
        data = ["x", *CONTROLS] if fn_index == 0 else CONTROLS
        for event in ({"index": 0, "value": bad}, {"index": 0, "value": {"text": bad}}, {"index": bad, "value": "x"}):
            text = page.call(fn_index, data, event_data=event)[1]
            assert SECRET not in text
            assert "/file=" not in text


def test_nothing_of_gradio_is_open_but_what_the_page_asks(page):
    pages = {"/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/health", "/gradio_api/queue/data"}
    others = (
        "upload", "upload_progress", "file=/etc/passwd", "file/etc/passwd", "proxy=http://127.0.0.1:1/", "run/predict",
        "api/predict", "call/predict", "component_server", "stream/a/b/c/playlist.m3u8", "process_recording", "vibe-edit",
        "vibe-code", "openapi.json", "info", "token", "reset", "cancel", "heartbeat/x", "custom_component/a/b/c/d", "runs",
        "deep_link", "dev/reload", "startup-events", "user", "login_check", "app_id",
    )  # fmt: skip
    paths = {*page.paths, *pages, "/gradio_api/queue/join", *(f"/gradio_api/{path}" for path in others)}
    assert len(page.paths) > 15, "Gradio's addresses are not found where they were"
    opened = {
        (method, path)
        for path in paths
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD")
        if page.ask(method, path)[0] not in (404, 405)
    }
    # bodies and sessions are missing here: 400 and 422 are answers of open ones
    assert opened <= {(method, path) for path in pages for method in ("GET", "HEAD")} | {
        ("POST", "/gradio_api/queue/join")
    }
    for path in ("/assets/../../../../etc/passwd", "/static/..%2f..%2f..%2fetc/passwd", "//etc/passwd", "/%2e%2e/etc"):
        status, text = page.ask("GET", path)
        assert (status >= 400, "root:" in text) == (True, False), path


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"[]", b"null", b"[" * 100_000, b'{"data":' + b"[" * 5_000, b"{" * 9, b'"\xff"',
        {}, {"data": None, "fn_index": 0, "session_hash": "a"}, {"data": [], "fn_index": 0},
        {"data": [], "fn_index": 0, "session_hash": 3}, {"data": [], "session_hash": "a", "event_data": [1]},
        b'{"data": ["' + b"x" * 1_000_001 + b'"], "session_hash": "a"}',
    ],
    ids=lambda body: str(body)[:30],
)  # fmt: skip
def test_messages_that_no_page_sends_are_refused(page, body):
    status, text = page.ask("POST", "/gradio_api/queue/join", body)
    assert 400 <= status < 500
    assert "Traceback" not in text


@pytest.mark.parametrize("place", range(len(CONTROLS)))
def test_settings_that_are_impossible_leave_the_page_as_it_was(page, place):
    values = [2.5, True, "hot", math.inf, math.nan, 10**30, None][place % 2 :: 2]
    for value in values:
        status, text = page.call(0, ["attack", *CONTROLS[:place], value, *CONTROLS[place + 1 :]])
        assert status == 200
        assert '"success":true' in text.replace(" ", "")
    assert "hello! " in page.call(0, ["hello", *CONTROLS])[1]


def test_pages_of_other_hosts_may_not_ask(page):
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        for method, path in (
            ("POST", "/gradio_api/queue/join"),
            ("GET", "/"),
            ("GET", "/gradio_api/queue/data?session_hash=a"),
        ):
            assert page.ask(method, path, {} if method == "POST" else None, **headers)[0] == 403

"""Who may ask over HTTP, how much, and how long: against a trivial application, so that it takes no model."""

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("litserve", reason="needs pip install '.[serve]'")

import uvicorn
from starlette.responses import PlainTextResponse

from nanochat_lit.serve import gate
from nanochat_lit.serve.gate import Gate, address_of, listen, uvicorn_config


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Reads a body of /read; answers at once otherwise."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/read":
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
    await PlainTextResponse("here")(scope, receive, send)


def refuse(status: int, message: str) -> Any:
    return PlainTextResponse(message, status)


@pytest.fixture
def start(monkeypatch) -> Iterator[Any]:
    """Serve `answer` behind a gate; the port."""
    monkeypatch.setattr(gate, "HEAD_TIMEOUT_S", 0.4)
    monkeypatch.setattr(gate, "KEEP_ALIVE_S", 1)
    running = []

    def run(host: str = "127.0.0.1", allowed_hosts: tuple[str, ...] = (), origins: tuple[str, ...] = ()) -> int:
        app = Gate(answer, host=host, allowed_hosts=allowed_hosts, origins=origins, refuse=refuse)
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn_config(app, lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread, listener))
        return listener.getsockname()[1]

    yield run
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


def ask(port: int, host: str | None = None, method: str = "GET", **headers: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.putrequest(method, "/", skip_host=True)
        connection.putheader("Host", f"127.0.0.1:{port}" if host is None else host)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read().decode()


NAMES = {
    "127.0.0.1": (True, True, True), "localhost:99": (True, True, True), "LOCALHOST": (True, True, True),
    "[::1]:8000": (True, True, True), "localhost.": (True, True, True),
    "192.168.7.7:80": (False, True, False), "[fe80::1]": (False, True, False),
    "chat.example.org": (False, False, True), "evil.example": (False, False, False), "": (False, False, False),
    "127.0.0.1@evil.example": (False, False, False), "127.0.0.1.evil.example": (False, False, False),
    "127.0.0.1 evil.example": (False, False, False), "[::1]evil": (False, False, False),
    "localhost:80:80": (False, False, False), "localhost/": (False, False, False),
}  # fmt: skip


def test_only_names_of_this_server_are_served(start):
    ports = start(), start("0.0.0.0"), start(allowed_hosts=("chat.example.org",))
    for name, wanted in NAMES.items():
        found = tuple(ask(port, name)[0] == 200 for port in ports)
        assert found == wanted, name
    status, message = ask(ports[0], "evil.example")
    assert status == 403
    assert "--allowed_hosts" in message
    assert ask(start(allowed_hosts=("*",)), "evil.example")[0] == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_pages_of_other_hosts_may_not_ask(start, method):
    port = start(allowed_hosts=("chat.example.org",), origins=("https://page.example",))
    own = f"http://127.0.0.1:{port}"
    for origin in (own, f"https://127.0.0.1:{port}", "https://chat.example.org", "https://page.example"):
        assert ask(port, None, method, Origin=origin)[0] == 200, origin
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        own + ".evil.example",
        "",
        "file://",
        "x" * 300,
    ):
        assert ask(port, None, method, Origin=origin)[0] == 403, origin


def raw(port: int, *parts: bytes, pause_s: float = 0.0, wait_s: float = 10.0) -> bytes:
    """What a server says to these bytes until it hangs up."""
    said = b""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=wait_s)) as connection:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65_536):
                said += chunk
    return said


HOST = b"Host: localhost\r\n"
CHUNKED = b"POST /read HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "block"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST, b"A: b\r\n" * 5_000),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: ", b"a" * 30_000),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a", b"a" * 30_000),
        (b"GET /", b"a" * 30_000),
        (CHUNKED + b"0\r\n", b"A: b\r\n" * 5_000),
        (CHUNKED + b"1;", b"a" * 30_000),
    ],
    ids=["headers", "value", "name", "path", "trailers", "extension"],
)
def test_endless_heads_end(start, begin, block):
    port = start()
    said = raw(port, begin, *[block] * 30)
    assert said == b"" or said.split()[1] in (b"431", b"400")
    assert ask(port)[0] == 200


def test_many_headers_in_one_piece_are_refused_by_number(start):
    port = start()
    assert b" 431 " in raw(port, b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 101 + b"Connection: close\r\n\r\n")
    assert b" 200 " in raw(port, b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 90 + b"Connection: close\r\n\r\n")
    assert b" 403 " in raw(port, b"GET / HTTP/1.1\r\n" + HOST * 2 + b"Connection: close\r\n\r\n")


@pytest.mark.parametrize(
    "request_line",
    [b"Content-Length: abc", b"Content-Length: -1", b"Content-Length: 1\r\nContent-Length: 2", b"Transfer-Encoding: x"],
)
def test_lengths_that_are_none(start, request_line):
    assert raw(start(), b"POST / HTTP/1.1\r\n" + HOST + request_line + b"\r\n\r\n").split()[1] in (b"400", b"200")


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"GE"],
        [b"GET / HTTP/1.1\r\n", *[b"A: b\r\n"] * 8],
        [b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", *[b"G"] * 8],
        [b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99\r\n\r\n", *[b"x"] * 8],
    ],
    ids=["silent", "begun", "drop by drop", "the second request", "a body that nobody reads"],
)
def test_connections_without_a_request_are_closed(start, parts):
    port = start()
    begin_s = time.monotonic()
    raw(port, *parts, pause_s=0.1)
    assert time.monotonic() - begin_s < 4


def test_a_connection_that_asks_again_is_kept(start):
    port = start()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        for _ in range(3):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"here"
            sock = connection.sock
            time.sleep(0.5)
        assert connection.sock is sock


def test_too_many_connections_cost_the_oldest_idle_one(start, monkeypatch):
    monkeypatch.setattr(gate, "HEAD_TIMEOUT_S", 30.0)
    monkeypatch.setattr(gate, "_max_connections", lambda: 4)
    port = start()
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=5)))
            for _ in range(12)
        ]
        assert ask(port)[0] == 200
        with contextlib.suppress(ConnectionError):
            assert connections[0].recv(1) == b""
        connections[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            connections[-1].recv(1)


def test_a_refused_client_that_leaves_is_not_answered():
    async def run() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        app = Gate(answer, host="127.0.0.1", allowed_hosts=(), origins=(), refuse=refuse)
        await app({"type": "http", "headers": [], "path": "/"}, receive, send)
        await app({"type": "websocket", "headers": [], "path": "/"}, receive, send)
        return sent

    assert asyncio.run(run()) == [{"type": "websocket.close"}]


def test_addresses_that_cannot_be_listened_on():
    from nanochat_lit.common.errors import UserError

    for host, port in (("127.0.0.1", 70_000), ("127.0.0.1", -1), ("256.1.1.1", 0), ("a..b", 0)):
        with pytest.raises(UserError):
            listen(host, port)
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener, "127.0.0.1") == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match="choose another --port"):
            listen("127.0.0.1", port)

"""Limits on requests from the network: Host and Origin, size and time; and the endpoints of Gradio that the chat page uses.

uvicorn (0.54) limits neither the size nor the duration of a request's head, and accepts any Host. Both the server and
the chat page use this module.

Gradio (6.31) has about seventy endpoints, for example for local files, proxied pages, uploads and recordings. An input
value of its file type names a file, which Gradio copies to its served folder. The page needs five endpoints and sends
plain values.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import json
import re
import socket
from collections.abc import Callable, Container, MutableMapping, Sequence
from typing import Any

import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nanochat_lit.common.errors import UserError

MAX_HEAD_BYTES = 16_384
"""Maximum size of a request's head (line and headers), also of trailers and chunk sizes between parts of a body."""
MAX_HEADERS = 100
MAX_CONNECTIONS = 1_000
"""Maximum number of connections; lower if the process may open fewer files."""
HEAD_TIMEOUT_S = 10.0
"""Time limit for a request's head in seconds, from the connection or the first data after a response."""
KEEP_ALIVE_S = 15
"""Idle timeout between requests of a connection, seconds."""
BODY_TIMEOUT_S = 20.0
"""Time limit for a request's body, seconds."""

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{1,5})?")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket (port 0: any free port); raises UserError if the address cannot be bound."""
    if not 0 <= port <= 65_535:
        raise UserError(f"port is {port}; use 1 to 65535, or 0 for any free port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot listen on {host}, port {port} ({reason}); choose another --port or --host") from None


def address_of(listener: socket.socket, host: str) -> str:
    """Return the URL of a listening socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def uvicorn_config(app: Any, **options: Any) -> uvicorn.Config:
    """Return a uvicorn configuration with this module's limits."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        **options,
    )


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits on the size and time of heads and on the number of connections.

    At the connection limit, a new connection replaces the oldest idle one, so that idle connections cannot block
    others.
    """

    _numbers = itertools.count()  # breaks ties: the loop's clock does not advance within an iteration
    _number = 0
    _num_unparsed = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer of the first request."""
        super().connection_made(transport)
        self._number = next(self._numbers)
        self._await_head()
        if len(self.connections) > _max_connections():
            ours = [other for other in self.connections if isinstance(other, BoundedProtocol)]
            idle = [other for other in ours if not other.is_answering and not other.transport.is_closing()]
            min(idle, key=lambda other: other._number, default=self)._hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        self._unset_head_timer()
        super().connection_lost(exc)

    @property
    def is_answering(self) -> bool:
        """Whether a request's head has arrived and its response is incomplete."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Parse data, unless the head exceeds its limit."""
        self._num_unparsed += len(data)
        super().data_received(data)
        if self._num_unparsed > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self._hang_up()
        elif not self.is_answering and self.timeout_keep_alive_task is None:
            self._await_head()

    def on_body(self, body: bytes) -> None:
        """Reset the head counter on body data."""
        self._num_unparsed = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Stop the head timer."""
        self._unset_head_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Prepare for the next request."""
        self._num_unparsed = 0
        super().on_message_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._hang_up)

    def _unset_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _hang_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _max_connections() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # reserves the rest for workers, files and closing connections
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(8, min(MAX_CONNECTIONS, files - 64))


class Gate:
    """ASGI middleware that rejects requests with a foreign Host or Origin, or too many headers.

    Any web page can make a browser send requests to this machine, directly or through a host name that resolves to it
    (DNS rebinding). Such requests carry the page's own host in `Host` or `Origin`.

    Loopback as `host` allows all names of loopback; a wildcard allows every IP address, which cannot be rebound, and
    this machine's name. `allowed_hosts` and `origins` are allowed in addition; "*" allows all. `refuse` returns the ASGI
    application that sends an error with a status and a message.
    """

    def __init__(
        self,
        app: Any,
        *,
        host: str,
        allowed_hosts: Sequence[str],
        origins: Sequence[str],
        refuse: Callable[[int, str], Any],
    ) -> None:
        self._app, self._refuse, self._origins = app, refuse, {origin.lower() for origin in origins}
        self._given = {name.lower().strip("[]") for name in allowed_hosts}
        self._is_wildcard = host in ("0.0.0.0", "::", "")  # noqa: S104
        is_local = self._is_wildcard or host.lower() == "localhost" or getattr(_address(host), "is_loopback", False)
        names = {"localhost", "127.0.0.1", "::1"} if is_local else set()
        names |= {socket.gethostname().lower()} if self._is_wildcard else {host.lower()}
        self._names = names | self._given

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward or reject a request."""
        refusal = self._refusal(scope["headers"]) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif await _body(receive, MAX_HEAD_BYTES, HEAD_TIMEOUT_S) is not None:  # so that its client reads the error
            await self._refuse(*refusal)(scope, receive, send)

    def _refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
            limits = f"{MAX_HEADERS} headers or {MAX_HEAD_BYTES} bytes of headers"
            return 431, f"the request has more than {limits}; send fewer"
        found = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        host = found[0] if found else ""
        if len(found) != 1 or not self._is_ours(_name_of(host)):
            return 403, f"the host {host[:80]!a} is not allowed; add it with --allowed_hosts"
        for origin in (value.decode("latin-1").lower() for name, value in headers if name == b"origin"):
            if not self._may_ask(origin, host):
                return 403, f"the origin {origin[:80]!a} is not allowed; only pages of this server's own address are"
        return None

    def _is_ours(self, name: str) -> bool:
        return bool({name, "*"} & self._names) or (self._is_wildcard and _address(name) is not None)

    def _may_ask(self, origin: str, host: str) -> bool:
        if {origin, "*"} & self._origins:
            return True
        scheme, _, authority = origin.partition("://")
        # behind a reverse proxy, Host may be the internal address
        return scheme in ("http", "https") and (authority == host or _name_of(authority) in self._given)


def _name_of(authority: str) -> str:
    """Return the host of HOST or HOST:PORT; empty if invalid."""
    found = _AUTHORITY.fullmatch(authority)
    return (found["v6"] or found["name"]).rstrip(".") if found else ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name)
    return None


MAX_BODY_BYTES = 1_000_000
"""Maximum size of a message from the page."""

_JOIN = "/gradio_api/queue/join"
_PAGES = ("/", "/health", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/gradio_api/queue/data")
_FOLDERS = ("/assets/", "/static/")

# Gradio's page needs inline scripts and eval; all other resources must come from this server.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)


class PageGate:
    """ASGI middleware that forwards requests of the page and adds the Content-Security-Policy to every response.

    Plain ASGI, because Starlette's base class buffers streams.

    `functions` are the indices of the page's functions.
    """

    def __init__(self, app: Any, functions: Container[object]) -> None:
        self._app, self._functions = app, functions

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Handle one request."""

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = [(b"content-security-policy", _POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message["headers"], *policy]
            await send(message)

        if scope["type"] != "http":  # only lifespan events; there are no websockets
            await self._app(scope, receive, send)
            return
        refusal: Any = None
        if scope["path"] == _JOIN and scope["method"] == "POST":
            body = await _body(receive, MAX_BODY_BYTES, BODY_TIMEOUT_S)
            if body is None:  # the client disconnected
                return
            refusal = self._problem_of(body)
            read_already = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive_again() -> dict[str, Any]:
                return read_already.pop() if read_already else await receive()

        else:
            receive_again = receive
            if scope["method"] not in ("GET", "HEAD") or not (
                scope["path"] in _PAGES or scope["path"].startswith(_FOLDERS)
            ):
                refusal = 404, "this endpoint does not exist"
        if refusal is None:
            await self._app(scope, receive_again, send_with_policy)
        else:
            status, message = refusal
            await JSONResponse({"detail": message}, status)(scope, receive, send_with_policy)

    def _problem_of(self, body: bytes) -> tuple[int, str] | None:
        """Return the problem of a message that the page would not send, or None."""
        if len(body) > MAX_BODY_BYTES:
            return 413, f"the message has more than {MAX_BODY_BYTES} bytes; send less"
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "the message is not JSON"
        values = message.get("data") if isinstance(message, dict) else None
        if not isinstance(values, list) or any(isinstance(value, dict | list) for value in values):
            return 400, "data must be a list of numbers, strings, true, false or null"
        if not isinstance(message.get("session_hash"), str) or isinstance(message.get("event_data"), list):
            return 400, "session_hash must be a string and event_data an object or a plain value"
        index = message.get("fn_index")
        if not isinstance(index, int) or isinstance(index, bool) or index not in self._functions:
            return 400, "fn_index is not one of the page's functions"
        return None


async def _body(receive: Any, max_bytes: int, timeout_s: float) -> bytes | None:
    """Return the body, or its beginning if it is too long or too slow; None if the client disconnected."""
    body = bytearray()
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while len(body) <= max_bytes:
        try:
            message = await asyncio.wait_for(receive(), deadline_s - asyncio.get_running_loop().time())
        except asyncio.TimeoutError:  # not the builtin before Python 3.11
            break
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            break
    return bytes(body)

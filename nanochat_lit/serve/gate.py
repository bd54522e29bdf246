"""What stands between the network and an application: who may ask, how much, and how long.

uvicorn (0.54) bounds neither the head of a request nor the time it takes, and serves any Host. Both the server and the chat
page run behind this file.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nanochat_lit.common.errors import UserError

MAX_HEAD_BYTES = 16_384
"""Longest head of a request: its line and headers, also the trailers and the sizes of chunks between two pieces of a body."""
MAX_HEADERS = 100
MAX_CONNECTIONS = 1_000
"""Connections at once; fewer where the process may open fewer files."""
HEAD_TIMEOUT_S = 10.0
"""Longest time from a connection, or from the end of a response whose connection sends more, to the end of a request's head."""
KEEP_ALIVE_S = 15
"""Longest silence between two requests of a connection."""
BODY_TIMEOUT_S = 20.0
"""Longest time for a request's body to arrive."""

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{1,5})?")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        host: Address to bind.
        port: Port to bind; 0 is any free port.

    Raises:
        UserError: If the address cannot be bound.
    """
    if not 0 <= port <= 65_535:
        raise UserError(f"port is {port}; use 1 to 65535, or 0 for any free port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot listen on {host}, port {port} ({reason}); choose another --port or --host") from None


def address_of(listener: socket.socket, host: str) -> str:
    """The URL of a listening socket, as a person types it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def uvicorn_config(app: Any, **options: Any) -> uvicorn.Config:
    """Uvicorn's configuration with this file's limits.

    Args:
        app: ASGI application.
        options: Further options of uvicorn.
    """
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
    """uvicorn's HTTP with bounds on the head's size and time, and on the number of connections.

    When there are too many connections, the oldest that is not being answered is closed for the new one, so that idle
    connections cannot keep others out.
    """

    _numbers = itertools.count()  # a loop's clock is the same for all that come at once
    _number = 0
    _num_unparsed = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)
        self._number = next(self._numbers)
        self._await_head()
        if len(self.connections) > _max_connections():
            others = [other for other in self.connections if isinstance(other, BoundedProtocol) and not other.is_busy]
            min(others, key=lambda other: other._number, default=self)._hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unset_head_timer()
        super().connection_lost(exc)

    @property
    def is_answering(self) -> bool:
        """Whether a request's head has arrived and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_busy(self) -> bool:
        """Whether it is being answered, or closed already."""
        return self.is_answering or self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Parse, unless there is too much that is not body."""
        self._num_unparsed += len(data)
        super().data_received(data)
        if self._num_unparsed > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self._hang_up()
        elif not self.is_answering and self.timeout_keep_alive_task is None:
            self._await_head()

    def on_body(self, body: bytes) -> None:
        """A piece of a body: what came before it is parsed."""
        self._num_unparsed = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._unset_head_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there; the next one may begin."""
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
    # the rest is for workers, files and the connections that are being closed
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(8, min(MAX_CONNECTIONS, files - 64))


class Gate:
    """ASGI middleware that refuses requests with another Host or Origin, or too many headers.

    A web page anywhere can make its reader's browser ask this machine, by a name that the page points here (DNS rebinding)
    or directly. Such requests name the page's own host in `Host` or `Origin`.

    Args:
        app: The application behind.
        host: Address the server listens on. Loopback allows all names of loopback; a wildcard allows every IP address,
            which cannot be rebound, and this machine's name.
        allowed_hosts: Further names of this server; "*" allows all.
        origins: Origins whose pages may ask; "*" allows all.
        refuse: Makes the ASGI application that sends a refusal, from a status and a message.
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
        is_local = self._is_wildcard or host.lower() == "localhost" or _is_loopback(host)
        names = {"localhost", "127.0.0.1", "::1"} if is_local else set()
        names |= {socket.gethostname().lower()} if self._is_wildcard else {host.lower()}
        self._names = names | self._given

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        refusal = self._refusal(scope["headers"]) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif await _drain(receive):
            await self._refuse(*refusal)(scope, receive, send)

    def _refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
            return 431, f"the request has over {MAX_HEADERS} headers or {MAX_HEAD_BYTES} bytes of headers; send fewer"
        found = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        host = found[0] if found else ""
        if len(found) != 1 or not self._is_ours(_name_of(host)):
            return (
                403,
                f"this server is not called {_shown(host)}; to use another name for it, start it with --allowed_hosts",
            )
        for origin in (value.decode("latin-1").lower() for name, value in headers if name == b"origin"):
            if not self._may_ask(origin, host):
                return 403, f"pages of {_shown(origin)} may not use this server; it allows those of its own address"
        return None

    def _is_ours(self, name: str) -> bool:
        return bool({name, "*"} & self._names) or (self._is_wildcard and _is_address(name))

    def _may_ask(self, origin: str, host: str) -> bool:
        if {origin, "*"} & self._origins:
            return True
        scheme, _, authority = origin.partition("://")
        # behind a reverse proxy, Host may be the address that the proxy uses
        return scheme in ("http", "https") and (authority == host or _name_of(authority) in self._given)


async def _drain(receive: Any) -> bool:
    """Read the rest of a small request, so that its client reads the refusal; False if the client has left."""
    num_bytes, has_more = 0, True
    with contextlib.suppress(asyncio.TimeoutError):
        while has_more and num_bytes < MAX_HEAD_BYTES:
            message = await asyncio.wait_for(receive(), HEAD_TIMEOUT_S)
            if message["type"] == "http.disconnect":
                return False
            num_bytes, has_more = num_bytes + len(message["body"]), message["more_body"]
    return True


def _name_of(authority: str) -> str:
    """The name in HOST or HOST:PORT; empty if it is neither."""
    found = _AUTHORITY.fullmatch(authority)
    return (found["v6"] or found["name"]).rstrip(".") if found else ""


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name) is not None
    return False


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _shown(value: str) -> str:
    return ascii(value[:80])

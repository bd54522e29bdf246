"""Restricts Gradio to the endpoints that the chat page uses.

Gradio (6.31) has about seventy endpoints, for example for local files, proxied pages, uploads and recordings. An input
value of its file type names a file, which Gradio copies to its served folder. The page needs five endpoints and sends
plain values.

/health, for the page's notice, is answered here.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Container, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from nanochat_lit.serve.gate import BODY_TIMEOUT_S

MAX_BODY_BYTES = 1_000_000
"""Maximum size of a message from the page."""

_JOIN = "/gradio_api/queue/join"
_PAGES = ("/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/gradio_api/queue/data")
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

    Args:
        app: Gradio's application.
        functions: Indices of the page's functions.
        problem: Returns why the model cannot answer now; None if it can. Runs in a thread.
    """

    def __init__(self, app: Any, functions: Container[object], problem: Callable[[], str | None]) -> None:
        self._app, self._functions, self._problem = app, functions, problem
        self._boot = secrets.token_hex(8)  # another process does not know the open tabs

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
        if scope["path"] == "/health" and scope["method"] == "GET":
            health = {"boot": self._boot, "problem": await asyncio.to_thread(self._problem)}
            await JSONResponse(health)(scope, receive, send_with_policy)
            return
        refusal: Any = None
        if scope["path"] == _JOIN and scope["method"] == "POST":
            body = await _body(receive)
            if body is None:  # the client disconnected
                return
            refusal = self._problem_of(body)

            async def receive_again() -> dict[str, Any]:
                nonlocal body
                if body is None:
                    return await receive()
                message, body = {"type": "http.request", "body": body, "more_body": False}, None
                return message

            app_receive = receive_again
        else:
            app_receive = receive
            if not _is_open(scope["method"], scope["path"]):
                refusal = 404, "this endpoint does not exist"
        if refusal is None:
            await self._app(scope, app_receive, send_with_policy)
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


def _is_open(method: str, path: str) -> bool:
    return method in ("GET", "HEAD") and (path in _PAGES or path.startswith(_FOLDERS))


async def _body(receive: Any) -> bytes | None:
    """Return the body, or its beginning if it is too long or too slow; None if the client disconnected."""
    body = bytearray()
    deadline_s = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
    while len(body) <= MAX_BODY_BYTES:
        try:
            message = await asyncio.wait_for(receive(), deadline_s - asyncio.get_running_loop().time())
        except asyncio.TimeoutError:  # not the builtin before Python 3.11
            return bytes(body)
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            break
    return bytes(body)

"""The server: LitServe's application, with one process for HTTP and one for each worker."""

import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import litserve
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from nanochat_lit.common.errors import UserError
from nanochat_lit.serve.api import ChatAPI, ServeSettings, fingerprint_of
from nanochat_lit.serve.gate import Gate, address_of, listen, uvicorn_config
from nanochat_lit.serve.messages import Ready
from nanochat_lit.serve.metrics import ServerMetrics
from nanochat_lit.serve.request_fields import ApiError
from nanochat_lit.serve.spec import ChatSpec
from nanochat_lit.serve.workers import ClientLeft, WorkerPool, log
from nanochat_lit.tokenizer import Tokenizer

_PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/tokenize", "/detokenize"),
    *("/health", "/metrics"),
)
_OFFER = "POST /v1/chat/completions, /v1/completions and /v1/responses, GET /v1/models, and also /tokenize, /health and /metrics"


class ChatServer(litserve.LitServer):
    """Chat completions over HTTP.

    LitServer provides the application, endpoints, middleware and authorization. Its `run` is replaced: on SIGTERM it
    orphans its workers, its /health succeeds without workers, and its several HTTP processes cannot count requests or
    tokens. `devices` has one entry per worker; None selects the fastest available device.
    """

    def __init__(self, settings: ServeSettings, devices: Sequence[str | None]) -> None:
        self.settings = settings
        self.metrics = ServerMetrics()
        tokenizer = _tokenizer_of(Path(settings.model))
        fingerprint = fingerprint_of(settings)
        self.pool = WorkerPool(settings, fingerprint, devices, self.metrics, self._announce, self._give_up)
        self.failure: tuple[str, int] | None = None
        self._address = ""
        self._start_s = time.monotonic()
        self._uvicorn: _Uvicorn | None = None
        spec = ChatSpec(settings, tokenizer, self.pool, self.metrics)
        middlewares: list[Any] = [  # the last one is outermost
            (Gate, {"host": settings.host, "allowed_hosts": settings.allowed_hosts, "origins": settings.cors_origins,
                    "refuse": _refusal}),
            (_Outcomes, {"metrics": self.metrics}),
        ]  # fmt: skip
        if settings.cors_origins:
            cors = {"allow_origins": list(settings.cors_origins), "allow_methods": ["*"], "allow_headers": ["*"]}
            middlewares.append((CORSMiddleware, {**cors, "expose_headers": ["Retry-After"]}))
        super().__init__(
            ChatAPI(settings, fingerprint, spec=spec),
            accelerator="cpu",  # the pool assigns devices
            devices=1,
            max_payload_size=settings.max_body_bytes,
            middlewares=middlewares,
            disable_openapi_url=True,
        )
        self.app.state.max_body_bytes = settings.max_body_bytes
        self.app.add_exception_handler(ApiError, _tell)
        self.app.add_exception_handler(StarletteHTTPException, _tell)
        for left in (ClientLeft, ClientDisconnect):
            self.app.add_exception_handler(left, _left)

    def _register_internal_endpoints(self) -> None:
        """Replace LitServe's endpoints: its /health requires the key and succeeds without live workers."""
        from fastapi import Depends

        self.app.add_api_route("/health", self.health, methods=["GET"])
        self.app.add_api_route(
            "/metrics", self.metrics_page, methods=["GET"], dependencies=[Depends(self.setup_auth())]
        )

    async def health(self) -> Response:
        """Return 200 if the server can answer a request now."""
        pool, num_ready = self.pool, self.pool.num_ready  # once: it changes with time
        status = "ok" if num_ready == pool.num_workers else "degraded" if num_ready else "not ready"
        body = {"status": status, "model": self.settings.name, "ready": num_ready, "workers": pool.num_workers}
        if pool.ready is not None:
            body["kernel"] = pool.ready.kernel
        return JSONResponse(body, 200 if num_ready else 503)

    async def metrics_page(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        return PlainTextResponse(self.metrics.render(), media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG002 - LitServe's signature
        """Start and stop the workers with the application."""
        self.pool.start()
        try:
            yield
        finally:
            await self.pool.close()

    def run(self, port: int = 8000) -> None:  # type: ignore[override]
        """Serve until SIGTERM or Ctrl-C; port 0 selects a free port.

        Raises:
            UserError: If the port is taken or a worker cannot start.
            SystemExit: With status 1 if workers die repeatedly.
        """
        listener = listen(self.settings.host, port)
        self._address = address_of(listener, self.settings.host)
        config = uvicorn_config(self.app, timeout_graceful_shutdown=int(self.settings.drain_timeout_s) + 3)
        self._uvicorn = _Uvicorn(config, self.pool, self.settings.drain_timeout_s)
        # uvicorn shuts down gracefully at a signal and then re-raises it for the previous handler, which is not needed
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._uvicorn.run(sockets=[listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.failure is not None:
            message, status = self.failure
            if status == 2:
                raise UserError(message)
            log(f"error: {message}")
            raise SystemExit(status)

    def _announce(self, ready: Ready) -> None:
        seconds = time.monotonic() - self._start_s
        log(
            f"{self.settings.name} is ready at {self._address}/v1 after {seconds:.1f} s: "
            f"{self.pool.num_workers} worker(s) with {ready.num_slots} slots of {ready.context} tokens"
        )

    def _give_up(self, message: str, status: int) -> None:
        self.failure = message, status
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        self.pool.fail_all(503, "the server is shutting down")


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, pool: WorkerPool, drain_timeout_s: float) -> None:
        super().__init__(config)
        self._pool, self._drain_timeout_s = pool, drain_timeout_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain running requests; those over the deadline receive an error before the connection closes."""
        import asyncio

        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._drain_timeout_s, self._pool.fail_all, 503, "the server is shutting down")
        await super().shutdown(sockets)
        timer.cancel()


class _Outcomes:
    """Middleware that counts requests by path and status, also those that never reach an endpoint.

    Uncaught exceptions become status 500: Starlette's own handler is outermost, where the response is not counted and
    lacks CORS headers.
    """

    def __init__(self, app: Any, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # client disconnected before the response started

        async def watch(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if status == 499:  # not started
                await (await _tell(Request(scope), error))(scope, receive, watch)
            raise  # uvicorn logs it
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"  # bounds the number of labels
            self.metrics.requests.add(path, str(status))


def _tokenizer_of(model: Path) -> Tokenizer:
    if not model.is_file():
        return Tokenizer.load(model)
    from nanochat_lit.engine.export import load_tokenizer  # with torch, which this process does without otherwise

    return load_tokenizer(model)


def _refusal(status: int, message: str) -> Response:
    return JSONResponse(ApiError(status, message).body, status)


async def _left(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    """Return the status that the metrics count for a client that disconnected."""
    return Response(status_code=499)


async def _tell(request: Request, error: Exception) -> Response:
    if isinstance(error, StarletteHTTPException | HTTPException):
        path = ascii(request.url.path[:80])
        limit = request.app.state.max_body_bytes
        size = request.headers.get("content-length", f"more than {limit}")  # a chunked body states none
        detail = {
            404: f"{path} does not exist; use the base URL {request.base_url}v1, which has {_OFFER}",
            405: f"{path} does not support {request.method}; this server has {_OFFER}",
            413: f"the body has {size} bytes, the limit (--max_body_bytes) is {limit}; send less",
        }
        error = ApiError(error.status_code, detail.get(error.status_code, str(error.detail)))
    if not isinstance(error, ApiError):
        error = ApiError(500, "internal error", code="internal_error")
    return JSONResponse(error.body, error.status, headers=error.headers)

"""State of one request at a worker, for the coroutine that answers the client."""

import asyncio
import time
from collections.abc import Callable

from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.serve.messages import Update
from nanochat_lit.serve.metrics import ServerMetrics

_CODES = {429: "queue_full", 503: "unavailable", 504: "timeout"}


class ClientLeft(Exception):  # noqa: N818 (not an error)
    """The client has disconnected."""


class Reply:
    """Passes updates of a request to the one coroutine that waits for them, and records metrics.

    Updates that arrive while the coroutine is busy are merged, so that a busy server writes less often. The coroutine
    waits on a single future; a queue with timeouts would cost several times as much per update as the rest of the
    server.

    Args:
        metrics: Metrics to update.
        start_s: Arrival time of the request on time.monotonic.
        on_close: Called once, with whether the request is finished and its slot is free.
    """

    def __init__(self, metrics: ServerMetrics, start_s: float, on_close: Callable[[bool], None]) -> None:
        self._metrics, self._start_s, self._on_close = metrics, start_s, on_close
        self._loop = asyncio.get_running_loop()
        self._news: Update | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._has_left = self._is_over = self._is_closed = False
        self._before_s = 0.0
        metrics.in_flight.add()

    def put(self, update: Update) -> None:
        """Add an update of the worker."""
        self._news = update if self._news is None else self._news.followed_by(update)
        self._wake()

    def leave(self) -> None:
        """Record that the client has disconnected."""
        self._has_left = True
        self._wake()

    async def next(self) -> Update:
        """Wait for the next update; the last one has a finish_reason.

        Raises:
            ApiError: If the request failed.
            ClientLeft: If the client has disconnected.
        """
        if self._news is None and not self._has_left:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._has_left:
            raise ClientLeft
        update, self._news = self._news, None
        assert update is not None, "woken without an update"
        self._is_over = update.finish_reason is not None or update.error is not None
        if update.error is not None:
            status, message, retry_after_s = update.error
            raise ApiError(status, message, code=_CODES.get(status), retry_after_s=retry_after_s)
        self._measure(update)
        return update

    def close(self) -> None:
        """Stop reading; cancels an unfinished request."""
        if self._is_closed:
            return
        self._is_closed = True
        self._metrics.in_flight.add(by=-1)
        if not self._is_over:
            self._metrics.disconnects.add()
        self._on_close(self._is_over)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _measure(self, update: Update) -> None:
        now_s = time.monotonic()
        if self._before_s == 0.0:
            self._metrics.first_token.observe(now_s - self._start_s)
        elif update.num_tokens:
            self._metrics.between_tokens.observe((now_s - self._before_s) / update.num_tokens, update.num_tokens)
        self._before_s = now_s
        self._metrics.completion_tokens.add(by=update.num_tokens)
        if self._is_over:
            self._metrics.request.observe(now_s - self._start_s)

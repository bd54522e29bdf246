"""One request at a worker, as the coroutine sees it that answers the client."""

import asyncio
import time
from collections.abc import Callable

from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.serve.messages import Update
from nanochat_lit.serve.metrics import ServerMetrics

_CODES = {429: "queue_full", 503: "unavailable", 504: "timeout"}


class ClientLeft(Exception):  # noqa: N818 (not an error)
    """The client no longer reads the answer."""


class Reply:
    """News of a request, measured, for the one coroutine that waits for them.

    News that come while the coroutine is busy become one piece of news: a server that cannot keep up writes less often. A
    future is all that is waited for; a queue with timeouts costs several times what the rest of the server does per update.

    Args:
        metrics: Where to count.
        start_s: When the request arrived, by time.monotonic.
        on_close: Called once, with whether the request is over; its place at the worker is free then.
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
        """The worker has news."""
        self._news = update if self._news is None else self._news.followed_by(update)
        self._wake()

    def leave(self) -> None:
        """The client has gone."""
        self._has_left = True
        self._wake()

    async def next(self) -> Update:
        """What there is to tell; the last has a finish_reason.

        Raises:
            ApiError: If there will be no (more) answer.
            ClientLeft: If its client has left.
        """
        if self._news is None and not self._has_left:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._has_left:
            raise ClientLeft
        update, self._news = self._news, None
        assert update is not None, "woken for something"
        self._is_over = update.finish_reason is not None or update.error is not None
        if update.error is not None:
            status, message, retry_after_s = update.error
            raise ApiError(status, message, code=_CODES.get(status), retry_after_s=retry_after_s)
        self._measure(update)
        return update

    def close(self) -> None:
        """Nothing more is read; a request that is not over is cancelled."""
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

"""State of one request at a worker (with one or several answers), for the coroutine that answers the client."""

import asyncio
import time
from collections.abc import Callable, Sequence

from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.serve.messages import Update
from nanochat_lit.serve.metrics import ServerMetrics

_CODES = {429: "queue_full", 503: "unavailable", 504: "timeout"}


class ClientLeft(Exception):  # noqa: N818 (not an error)
    """The client has disconnected."""


class Reply:
    """Passes updates of one or several answers to the one coroutine that waits for them, and records metrics.

    Updates that arrive while the coroutine is busy are merged, so that a busy server writes less often. The coroutine
    waits on a single future; a queue with timeouts would cost several times as much per update as the rest of the
    server.

    Args:
        metrics: Metrics to update.
        start_s: Arrival time of the request on time.monotonic.
        keys: Keys of its answers at the worker.
        on_close: Called once, with the keys of the unfinished answers, whose slots are still in use.
    """

    def __init__(
        self, metrics: ServerMetrics, start_s: float, keys: Sequence[int], on_close: Callable[[set[int]], None]
    ) -> None:
        self._metrics, self._start_s, self._on_close = metrics, start_s, on_close
        self._index = {key: index for index, key in enumerate(keys)}
        self._open = set(keys)
        self._loop = asyncio.get_running_loop()
        self._news: dict[int, Update] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._has_left = self._has_failed = self._is_closed = False
        self._before_s = 0.0
        metrics.in_flight.add()

    def put(self, update: Update) -> None:
        """Add an update of the worker."""
        earlier = self._news.get(update.key)
        self._news[update.key] = update if earlier is None else earlier.followed_by(update)
        self._wake()

    def leave(self) -> None:
        """Record that the client has disconnected."""
        self._has_left = True
        self._wake()

    async def next(self) -> list[tuple[int, Update]]:
        """Wait for the next updates; each has the index of its answer, whose last one has a finish_reason.

        Raises:
            ApiError: If an answer failed.
            ClientLeft: If the client has disconnected.
        """
        if not self._news and not self._has_left:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._has_left:
            raise ClientLeft
        updates, self._news = list(self._news.values()), {}
        self._open -= {update.key for update in updates if update.finish_reason or update.error}
        for error in [update.error for update in updates if update.error]:
            self._has_failed = True
            status, message, retry_after_s = error
            raise ApiError(status, message, code=_CODES.get(status), retry_after_s=retry_after_s)
        self._measure(sum(update.num_tokens for update in updates))
        return [(self._index[update.key], update) for update in updates]

    @property
    def is_over(self) -> bool:
        """Whether every answer is finished."""
        return not self._open

    def close(self) -> None:
        """Stop reading; cancels unfinished answers."""
        if self._is_closed:
            return
        self._is_closed = True
        self._metrics.in_flight.add(by=-1)
        if self._open and not self._has_failed:
            self._metrics.disconnects.add()
        self._on_close(self._open)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _measure(self, num_tokens: int) -> None:
        now_s = time.monotonic()
        if self._before_s == 0.0:
            self._metrics.first_token.observe(now_s - self._start_s)
        elif num_tokens:
            self._metrics.between_tokens.observe((now_s - self._before_s) / num_tokens, num_tokens)
        self._before_s = now_s
        self._metrics.completion_tokens.add(by=num_tokens)
        if self.is_over:
            self._metrics.request.observe(now_s - self._start_s)

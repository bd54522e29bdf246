"""The worker pool of the server: starts workers, distributes requests and their results, restarts dead workers.

LitServe (0.2.19) sends a message per token through a manager process, and polls every two seconds for dead workers, in
a process that does not know their requests. Here each worker has its own socket to the event loop. Its death is
detected immediately, without additional threads or processes.
"""

import asyncio
import contextlib
import math
import multiprocessing
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import fastapi
from litserve.callbacks import CallbackRunner
from litserve.loops import inference_worker
from litserve.transport.base import MessageTransport

from nanochat_lit.engine.sampling_params import Request
from nanochat_lit.serve.api import ChatAPI, ServeSettings
from nanochat_lit.serve.messages import Cancel, Close, Failed, Ready, Report, Submit, Update, merged
from nanochat_lit.serve.metrics import ServerMetrics
from nanochat_lit.serve.request_fields import ApiError

_CODES = {429: "queue_full", 503: "unavailable", 504: "timeout"}


class ClientLeft(Exception):  # noqa: N818 (not an error)
    """The client has disconnected."""


class Reply:
    """Passes updates of one or several answers to the one coroutine that waits for them, and records metrics.

    Updates that arrive while the coroutine is busy are merged, so that a busy server writes less often. The coroutine
    waits on a single future; a queue with timeouts would cost several times as much per update as the rest of the
    server. `keys` are those of the answers at the worker; `on_close` is called once, with those of unfinished ones.
    """

    def __init__(
        self, metrics: ServerMetrics, start_s: float, keys: Sequence[int], on_close: Callable[[set[int]], None]
    ) -> None:
        self._metrics, self._start_s, self._on_close = metrics, start_s, on_close
        self._index = {key: index for index, key in enumerate(keys)}
        self._open = set(keys)
        self._loop = asyncio.get_running_loop()
        self._news: defaultdict[int, list[Update]] = defaultdict(list)
        self._waiter: asyncio.Future[None] | None = None
        self._has_left = self._has_failed = self._is_closed = False
        self._follower: asyncio.Task[None] | None = None
        self._before_s = 0.0
        metrics.in_flight.add()

    def put(self, update: Update) -> None:
        """Add an update of the worker."""
        self._news[update.key].append(update)
        self._wake()

    def follow(self, request: fastapi.Request) -> None:
        """Call `leave` once the client of this request disconnects."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.leave()

        self._follower = self._loop.create_task(watch())

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
        updates = [merged(self._news.pop(key)) for key in list(self._news)]
        self._open -= {update.key for update in updates if update.is_last}
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
        if self._follower is not None:
            self._follower.cancel()
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


MAX_QUICK_DEATHS = 3
QUICK_DEATH_S = 30.0
"""A death this many seconds after the worker was ready counts as quick. After MAX_QUICK_DEATHS of them without an
answer in between, the server exits."""
SILENT_S = 3.0
"""Seconds of silence after which a worker gets no requests and is excluded from /health, until it responds or is
replaced."""
WATCH_EVERY_S = 0.5
"""Interval of the silence checks, seconds."""


class PipeTransport(MessageTransport):
    """LitServe's transport interface over a worker's socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, item: Any, consumer_id: int) -> None:  # noqa: ARG002 - there is one server process
        """Send a message to the server."""
        with contextlib.suppress(BrokenPipeError):  # the server was killed; this process is about to exit too
            self._connection.send(item)

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> Any:
        """Unused: the server's event loop reads the socket."""
        raise NotImplementedError


class _Worker:
    def __init__(self, settings: ServeSettings, fingerprint: str, index: int, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.index, self.device = index, device
        self.replies: dict[int, Reply] = {}
        self.report = Report(0, 0, [])
        self.ready: Ready | None = None
        self.ready_s = math.inf  # a worker that was never ready counts as a quick death
        self.heard_s = 0.0
        self.has_given_up = False
        self.socket, theirs = socket.socketpair()
        self._writer: asyncio.StreamWriter | None = None
        connection = Connection(theirs.detach())
        api = ChatAPI(settings, fingerprint)
        arguments = (api, device, index, connection, PipeTransport(connection), {}, CallbackRunner(), False)
        self.process = context.Process(target=inference_worker, args=arguments, name=f"worker-{index}", daemon=True)
        with _signals_blocked():
            self.process.start()
        connection.close()  # so that the socket closes when the process ends

    @property
    def is_able(self) -> bool:
        """Whether the worker can accept requests."""
        return self.ready is not None and time.monotonic() - self.heard_s < SILENT_S

    def send(self, message: Any) -> None:
        """Send without blocking; unread data is buffered."""
        if self._writer is not None:
            content = pickle.dumps(message)
            with contextlib.suppress(OSError, RuntimeError):  # it has just died; `receive` will handle it
                # the wire format of multiprocessing.Connection
                self._writer.write(struct.pack("!i", len(content)) + content)

    async def receive(self, take: Callable[["_Worker", Any], None]) -> None:
        """Call `take` with every message, and with None after the last."""
        reader, self._writer = await asyncio.open_connection(sock=self.socket)
        try:
            # a killed process may leave a partial message
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    (length,) = struct.unpack("!i", await reader.readexactly(4))
                    take(self, pickle.loads(await reader.readexactly(length)))  # noqa: S301 - from our own process
        finally:
            self._writer.close()
            self._writer = None
        take(self, None)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


class WorkerPool:
    """All workers; must be used from the event loop's thread.

    Restarted workers refuse to load an export with another `fingerprint`. `devices` has one entry per worker. `on_ready`
    is called when the first worker is ready, `on_failure` with a message and the exit status when the server must exit.
    """

    def __init__(
        self,
        settings: ServeSettings,
        fingerprint: str,
        devices: Sequence[str | None],
        metrics: ServerMetrics,
        on_ready: Callable[[Ready], None],
        on_failure: Callable[[str, int], None],
    ) -> None:
        self._settings, self._fingerprint, self._devices, self._metrics = settings, fingerprint, devices, metrics
        self._on_ready, self._on_failure = on_ready, on_failure
        self._workers: list[_Worker] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_key = 0
        self._num_quick_deaths = 0
        self._is_closing = False
        self.ready: Ready | None = None
        """Ready message of the first worker."""

    @property
    def num_workers(self) -> int:
        """Configured number of workers."""
        return len(self._devices)

    @property
    def num_ready(self) -> int:
        """Number of workers that can accept requests."""
        return sum(worker.is_able for worker in self._workers)

    def start(self) -> None:
        """Start all workers; call it within the event loop."""
        self._workers = [self._launch(index) for index in range(self.num_workers)]
        self._start(self._watch())

    async def close(self) -> None:
        """Stop all workers gracefully, then kill those that remain."""
        self._is_closing = True
        for worker in self._workers:
            worker.send(Close())
        deadline_s = time.monotonic() + 3
        while any(w.process.is_alive() for w in self._workers) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        for worker in self._workers:
            worker.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fail_all(self, status: int, message: str) -> None:
        """Fail every request with an error."""
        for worker in self._workers:
            self._fail(worker, status, message)

    def ask(self, requests: Sequence[Request], client: str, start_s: float) -> Reply:
        """Submit the requests of one HTTP request, all to one worker; the caller must close the reply.

        `start_s` is the arrival time on time.monotonic. Raises ApiError if no worker can answer now.
        """
        able = [worker for worker in self._workers if worker.is_able]
        if not able:
            raise ApiError(503, "the model is not ready; try again in a few seconds", code="not_ready", retry_after_s=2)
        worker = min(able, key=lambda worker: len(worker.replies))
        keys = range(self._next_key, self._next_key + len(requests))
        self._next_key = keys.stop
        deadline_s = time.monotonic() + self._settings.request_timeout_s

        def close(unfinished: set[int]) -> None:
            for key in keys:
                worker.replies.pop(key, None)
            for key in unfinished:
                worker.send(Cancel(key))

        reply = Reply(self._metrics, start_s, keys, close)
        for key, request in zip(keys, requests, strict=True):
            worker.replies[key] = reply
            worker.send(Submit(key, request, client, deadline_s))
        return reply

    async def _watch(self) -> None:
        """Kill workers that are silent for too long, so that they are replaced."""
        hang_s = self._settings.hang_timeout_s
        while not self._is_closing:
            start_s = time.monotonic()
            await asyncio.sleep(WATCH_EVERY_S)
            now_s = time.monotonic()
            # delay of this process, during which messages were not read
            pause_s = max(0.0, now_s - start_s - 2 * WATCH_EVERY_S)
            for worker in self._workers:
                worker.heard_s += pause_s
                if worker.ready is not None and now_s - worker.heard_s > hang_s:
                    log(f"worker {worker.index} has been silent for {hang_s:g} s")
                    self._fail(worker, 504, "the worker of this request hangs and is being restarted; try again")
                    worker.ready = None
                    worker.process.kill()
            self._measure()

    def _launch(self, index: int) -> _Worker:
        worker = _Worker(self._settings, self._fingerprint, index, self._devices[index])
        self._start(worker.receive(self._receive))
        return worker

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_of)

    def _end_of(self, task: asyncio.Task[None]) -> None:
        """Shut the server down if a task fails, because a worker would no longer be watched."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._is_closing:
            log("".join(traceback.format_exception(error)).rstrip())
            self._is_closing = True
            self._on_failure(f"the workers can no longer be watched ({type(error).__name__}: {error})", 1)

    def _receive(self, worker: _Worker, message: Any) -> None:
        worker.heard_s = time.monotonic()
        if isinstance(message, Report):
            worker.report = message
            for update in message.updates:
                if update.finish_reason is not None:
                    self._num_quick_deaths = 0
                reply = worker.replies.get(update.key)
                if reply is not None:  # None if its client disconnected
                    reply.put(self._explained(update))
        elif isinstance(message, Ready):
            worker.ready, worker.ready_s = message, time.monotonic()
            if self.ready is None:
                self.ready = message
                self._on_ready(message)
        elif isinstance(message, Failed):
            self._give_up(worker, message.message, 2)
        elif message is None and not self._is_closing and worker is self._workers[worker.index]:
            self._bury(worker)
        self._measure()

    def _bury(self, worker: _Worker) -> None:
        self._fail(worker, 503, "the worker of this request died; try again")
        worker.end()
        worker.ready, worker.report = None, Report(0, 0, [])
        is_quick = time.monotonic() - worker.ready_s < QUICK_DEATH_S
        self._num_quick_deaths = self._num_quick_deaths + 1 if is_quick else 0
        status = worker.process.exitcode
        if worker.has_given_up:
            return
        if self.ready is None or self._num_quick_deaths >= MAX_QUICK_DEATHS:
            self._is_closing = True
            self._on_failure(f"worker {worker.index} repeatedly exited with status {status}", 1)
            return
        log(f"worker {worker.index} exited with status {status}; starting another")
        self._metrics.restarts.add()
        self._workers[worker.index] = self._launch(worker.index)

    def _give_up(self, worker: _Worker, message: str, status: int) -> None:
        """Handle a worker that cannot start; the server continues with the others, if any."""
        worker.has_given_up = True
        if any(other.ready is not None for other in self._workers):
            log(f"error: worker {worker.index}: {message}; the other workers continue")
            return
        self._is_closing = True
        self._on_failure(message, status)

    def _fail(self, worker: _Worker, status: int, message: str) -> None:
        for key, reply in worker.replies.items():
            reply.put(Update(key, error=(status, message, 5)))

    def _explained(self, update: Update) -> Update:
        if update.error is None or update.error[0] != 504:
            return update
        limit = f"{self._settings.request_timeout_s:g} s (--request_timeout_s)"
        message = f"the answer was not finished within {limit}; request fewer tokens, or try later"
        return update._replace(error=(504, message, None))

    def _measure(self) -> None:
        self._metrics.queued.set(sum(worker.report.num_queued for worker in self._workers))
        self._metrics.active.set(sum(worker.report.num_active for worker in self._workers))
        self._metrics.workers.set(self.num_ready)
        self._metrics.slots.set(
            sum(worker.ready.num_slots for worker in self._workers if worker.ready and worker.is_able)
        )


def log(message: str) -> None:
    """Write a line to stderr; ignores errors, because the server may outlive the reader of its log."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM, which reach the process group, in child processes; only the server ends workers."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where signals reach only this process
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

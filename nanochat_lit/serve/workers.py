"""The server's side of its workers: start them, hand out requests, notice deaths, start again.

LitServe (0.2.19) sends everything through a manager process, a message per token, and looks every two seconds for workers that
died, in a process that does not know their requests. Here each worker has a pipe of its own: its end is noticed at once, by
those who wait for it, and no fourth process is needed.
"""

import asyncio
import contextlib
import math
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from litserve.callbacks import CallbackRunner
from litserve.loops import inference_worker
from litserve.transport.base import MessageTransport

from nanochat_lit.serve.api import ChatAPI, ServeSettings
from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.serve.loop import ChatLoop
from nanochat_lit.serve.messages import Cancel, Close, Failed, Ready, Report, Submit, Update
from nanochat_lit.serve.metrics import ServerMetrics

MAX_QUICK_DEATHS = 3
QUICK_DEATH_S = 30.0
"""A worker that dies so soon after it was ready, MAX_QUICK_DEATHS times in a row, would die again: the server ends."""
HANG_S = 10.0
"""A worker that has not even reported a timeout this long after it hangs, and is replaced."""


class PipeTransport(MessageTransport):
    """LitServe's interface for what workers send, over a pipe."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def send(self, item: Any, consumer_id: int) -> None:  # noqa: ARG002 - there is one server process
        """Send to the server."""
        with contextlib.suppress(BrokenPipeError):  # it has been killed; this process is about to end, too
            self._connection.send(item)

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> Any:
        """Not used: a thread of the server reads the pipe."""
        raise NotImplementedError


class _Worker:
    """A process and the requests it has."""

    def __init__(self, settings: ServeSettings, index: int, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.index, self.device = index, device
        self.messages = context.Queue()
        self.streams: dict[int, asyncio.Queue[Update]] = {}
        self.report = Report(0, 0, [])
        self.ready: Ready | None = None
        self.ready_s = math.inf  # so that one that never was ready has died quickly
        self.connection, theirs = context.Pipe(duplex=False)
        api = ChatAPI(settings, loop=ChatLoop())
        arguments = (api, device, index, self.messages, PipeTransport(theirs), {}, CallbackRunner(), False)
        self.process = context.Process(target=inference_worker, args=arguments, name=f"worker-{index}", daemon=True)
        with _signals_blocked():
            self.process.start()
        theirs.close()  # now the pipe ends when the process does

    def end(self) -> None:
        """Kill the process and free what belonged to it."""
        self.process.kill()
        self.process.join()
        self.messages.close()
        self.messages.cancel_join_thread()


class WorkerPool:
    """All workers; everything but the reading of pipes happens in the event loop's thread.

    Args:
        settings: Of the server.
        devices: One per worker; None is the fastest there is.
        metrics: Where to count.
        on_ready: Called when the first worker is ready.
        on_failure: Called with a message and the exit status when the server has to end.
    """

    def __init__(
        self,
        settings: ServeSettings,
        devices: Sequence[str | None],
        metrics: ServerMetrics,
        on_ready: Callable[[Ready], None],
        on_failure: Callable[[str, int], None],
    ) -> None:
        self._settings, self._devices, self._metrics = settings, devices, metrics
        self._on_ready, self._on_failure = on_ready, on_failure
        self._workers: list[_Worker] = []
        self._next_key = 0
        self._num_quick_deaths = 0
        self._is_closing = False
        self.ready: Ready | None = None
        """What the first worker that was ready has told."""

    @property
    def num_workers(self) -> int:
        """Workers there should be."""
        return len(self._devices)

    @property
    def num_ready(self) -> int:
        """Workers that can take requests."""
        return sum(worker.ready is not None for worker in self._workers)

    def start(self) -> None:
        """Start all workers, from inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._workers = [self._launch(index) for index in range(self.num_workers)]

    async def close(self) -> None:
        """End all workers: nicely, then by force."""
        self._is_closing = True
        for worker in self._workers:
            worker.messages.put(Close())
        deadline_s = time.monotonic() + 3
        while any(w.process.is_alive() for w in self._workers) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        for worker in self._workers:
            worker.end()

    def fail_all(self, status: int, message: str) -> None:
        """Tell every request that there will be no (more) answer."""
        for worker in self._workers:
            self._fail(worker, status, message)

    async def updates(self, fields: dict[str, Any], client: str) -> AsyncIterator[Update]:
        """Have a request answered.

        Args:
            fields: Of the engine's Request.
            client: Whose turn it takes.

        Yields:
            News, the last with a finish_reason. Closing the iterator cancels the request.

        Raises:
            ApiError: If there will be no (more) answer.
        """
        able = [worker for worker in self._workers if worker.ready is not None]
        if not able:
            raise ApiError(503, "the model is not ready; try again in a moment", code="not_ready", retry_after_s=2)
        worker = min(able, key=lambda worker: len(worker.streams))
        key = self._next_key = self._next_key + 1
        stream = worker.streams[key] = asyncio.Queue()
        deadline_s = time.monotonic() + self._settings.request_timeout_s
        worker.messages.put(Submit(key, fields, client, deadline_s))
        is_over = False
        try:
            while not is_over:
                try:
                    update = await asyncio.wait_for(stream.get(), max(0.0, deadline_s + HANG_S - time.monotonic()))
                except asyncio.TimeoutError:  # not the builtin before Python 3.11
                    worker.ready = None  # no new requests
                    worker.process.kill()  # its end is noticed and it is replaced
                    raise ApiError(504, "the model does not answer; it is started again", retry_after_s=5) from None
                is_over = update.finish_reason is not None or update.error is not None
                if update.error is not None:
                    status, message, retry_after_s = update.error
                    if status == 504:
                        limit = f"{self._settings.request_timeout_s:g} s (--request_timeout_s)"
                        message = f"the answer was not finished within {limit}; ask for fewer tokens, or later"
                    raise ApiError(status, message, code=_CODES.get(status), retry_after_s=retry_after_s)
                yield update
        finally:
            worker.streams.pop(key, None)
            if not is_over:
                worker.messages.put(Cancel(key))

    def _launch(self, index: int) -> _Worker:
        worker = _Worker(self._settings, index, self._devices[index])
        threading.Thread(target=self._read, args=(worker,), daemon=True, name=f"read-{index}").start()
        return worker

    def _read(self, worker: _Worker) -> None:
        """In a thread of its own: a pipe's messages to the event loop."""
        while True:
            try:
                message = worker.connection.recv()
            except Exception:  # noqa: BLE001 (a killed process may leave half a message, of which anything can come)
                message = None
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._receive, worker, message)
            if message is None:
                worker.connection.close()
                return

    def _receive(self, worker: _Worker, message: Any) -> None:
        if isinstance(message, Report):
            worker.report = message
            for update in message.updates:
                stream = worker.streams.get(update.key)
                if stream is not None:  # else its client has left
                    stream.put_nowait(update)
        elif isinstance(message, Ready):
            worker.ready, worker.ready_s = message, time.monotonic()
            if self.ready is None:
                self.ready = message
                self._on_ready(message)
        elif isinstance(message, Failed):
            self._is_closing = True
            self._on_failure(message.message, 2)
        elif not self._is_closing:
            self._bury(worker)
        self._measure()

    def _bury(self, worker: _Worker) -> None:
        """A worker has died: tell its clients, start another."""
        self._fail(worker, 503, "the process that computed this answer has died; try again")
        worker.end()
        worker.ready, worker.report = None, Report(0, 0, [])
        is_quick = time.monotonic() - worker.ready_s < QUICK_DEATH_S
        self._num_quick_deaths = self._num_quick_deaths + 1 if is_quick else 0
        status = worker.process.exitcode
        if self.ready is None or self._num_quick_deaths >= MAX_QUICK_DEATHS:
            self._is_closing = True
            self._on_failure(f"worker {worker.index} ended with status {status} and would do so again", 1)
            return
        print(f"worker {worker.index} ended with status {status}; starting another", file=sys.stderr, flush=True)
        self._metrics.restarts.add()
        self._workers[worker.index] = self._launch(worker.index)

    def _fail(self, worker: _Worker, status: int, message: str) -> None:
        for key, stream in worker.streams.items():
            stream.put_nowait(Update(key, [], 0, None, (status, message, 5)))

    def _measure(self) -> None:
        self._metrics.queued.set(sum(worker.report.num_queued for worker in self._workers))
        self._metrics.active.set(sum(worker.report.num_active for worker in self._workers))
        self._metrics.workers.set(self.num_ready)
        self._metrics.slots.set(sum(worker.ready.num_slots for worker in self._workers if worker.ready))


_CODES = {429: "queue_full", 503: "unavailable", 504: "timeout"}


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process started meanwhile never sees Ctrl-C or SIGTERM, which reach a whole group: only the server ends workers."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where they reach nobody else
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

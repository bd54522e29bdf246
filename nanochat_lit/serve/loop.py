"""What a worker does: take requests from the server, step the engine, report.

LitServe's own continuous loop (0.2.19) waits up to a second for each admission, lets requests of clients that left run on, and
ends at the first exception; measured, so only its interface is kept. Here a thread collects what the server sends, and the
main thread, to which the engine belongs, never waits while there is work.
"""

import contextlib
import threading
import time
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import Any

from litserve.loops import LitLoop

from nanochat_lit.common.errors import UserError
from nanochat_lit.serve.messages import Cancel, Close, Failed, Report, Submit, Update

REPORT_EVERY_S = 0.02
"""Text is sent at most this often, but for first and last tokens. A small model makes thousands of tokens a second, whose
messages would cost more than the tokens; 50 times a second is smooth to the eye."""


class ChatLoop(LitLoop):
    """LitServe calls `run` in the worker, once the model is loaded; it returns when the server says so."""

    def run(
        self,
        lit_api: Any,  # a ChatAPI
        device: str | None,  # noqa: ARG002
        worker_id: int,  # noqa: ARG002
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,  # noqa: ARG002
        callback_runner: Any,  # noqa: ARG002
    ) -> None:
        """Serve until told to end."""
        if lit_api.failure is not None:
            transport.send(Failed(lit_api.failure), 0)
            raise SystemExit(1)
        transport.send(lit_api.ready, 0)
        inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_collect, args=(request_queue, inbox), daemon=True).start()
        work = EngineWork(lit_api.scheduler, lit_api.end_ids)
        while work.take(_messages(inbox, wait=not lit_api.scheduler.has_work)):
            report = work.step()
            if report is not None:
                transport.send(report, 0)
        raise SystemExit(0)


class EngineWork:
    """Messages in, reports out, one step at a time; no process or pipe is needed to test it.

    Args:
        scheduler: Over the engine.
        end_ids: Tokens that end an answer and are no part of it.
        clock: Seconds that only grow.
    """

    def __init__(self, scheduler: Any, end_ids: frozenset[int], clock: Any = time.monotonic) -> None:
        self._scheduler = scheduler
        self._end_ids = end_ids
        self._clock = clock
        self._updates: dict[int, Update] = {}
        self._started: set[int] = set()  # those whose first token was reported
        self._is_urgent = False
        self._last_state = (0, 0)
        self._last_report_s = clock()

    def take(self, messages: Iterable[Any]) -> bool:
        """Act on messages of the server; False if it wants the worker to end."""
        for message in messages:
            if isinstance(message, Close):
                return False
            if isinstance(message, Cancel):
                self._scheduler.cancel(message.key)
                self._updates.pop(message.key, None)
                self._started.discard(message.key)
            else:
                self._submit(message)
        return True

    def step(self) -> Report | None:
        """Let the engine go on; a report if it is time for one."""
        for key, emitted, error in self._scheduler.step():
            if error is not None:
                self._fail(key, *_status_of(error))
            else:
                self._add(key, emitted)
        state = (self._scheduler.num_queued, self._scheduler.num_active)
        now_s = self._clock()
        is_due = now_s - self._last_report_s >= REPORT_EVERY_S or not self._scheduler.has_work
        if not (self._is_urgent or (is_due and (self._updates or state != self._last_state))):
            return None
        report = Report(*state, list(self._updates.values()))
        self._updates, self._is_urgent, self._last_state, self._last_report_s = {}, False, state, now_s
        return report

    def _submit(self, message: Submit) -> None:
        from nanochat_lit.engine.request import Request
        from nanochat_lit.engine.scheduler import QueueFull

        try:
            self._scheduler.submit(
                message.key, Request(**message.fields), message.client, message.deadline_s - self._clock()
            )
        except QueueFull as full:
            self._fail(message.key, 429, str(full), full.retry_after_s)

    def _add(self, key: int, emitted: Any) -> None:
        before = self._updates.get(key) or Update(key, [], 0, None, None)
        parts = [*before.parts, *((piece.type, piece.text) for piece in emitted.pieces)]
        num_tokens = before.num_tokens + (emitted.token_id not in self._end_ids)
        self._updates[key] = Update(key, parts, num_tokens, emitted.finish_reason, None)
        if emitted.finish_reason is not None:
            self._started.discard(key)
            self._is_urgent = True
        elif key not in self._started:
            self._started.add(key)
            self._is_urgent = True

    def _fail(self, key: int, status: int, message: str, retry_after_s: int | None = None) -> None:
        before = self._updates.get(key) or Update(key, [], 0, None, None)
        self._updates[key] = before._replace(error=(status, message, retry_after_s))
        self._started.discard(key)
        self._is_urgent = True


def _collect(request_queue: Any, inbox: SimpleQueue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError):  # the server is gone
        while True:
            inbox.put(request_queue.get())
    inbox.put(Close())


def _messages(inbox: SimpleQueue[Any], wait: bool) -> Iterable[Any]:
    """What has arrived; waits for the first if there is nothing else to do."""
    if wait:
        yield inbox.get()
    with contextlib.suppress(Empty):
        while True:
            yield inbox.get_nowait()


def _status_of(error: Exception) -> tuple[int, str]:
    from nanochat_lit.engine.scheduler import DeadlineExceeded

    if isinstance(error, DeadlineExceeded):
        return 504, str(error)
    if isinstance(error, UserError):
        return 400, str(error)
    return 500, f"the engine refused the request ({type(error).__name__})"

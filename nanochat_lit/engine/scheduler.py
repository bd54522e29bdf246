"""Scheduling of requests for an engine with slots: admission, fairness, cancellation, deadlines. Independent of torch.

Clients are served round-robin, and the requests of one client in order, so a client waits for at most one request of
each other client per own request. Running requests are never preempted.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Emission(Protocol):
    """Result of one step for one slot."""

    @property
    def slot(self) -> int:
        """Handle returned by `admit`."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """None while the request is running; otherwise the slot is free."""
        ...


class HasSlots(Protocol):
    """An engine with a fixed number of slots, each with one request."""

    @property
    def num_slots(self) -> int:
        """Maximum number of concurrent requests."""
        ...

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        ...

    def admit(self, request: Any, /) -> int:
        """Reserve a slot for a request and return its handle; an exception rejects only this request."""
        ...

    def release(self, slot: int, /) -> None:
        """Abort the request in a slot and free the slot."""
        ...

    def step(self) -> Sequence[Emission]:
        """Advance all running requests; a slot may have several emissions."""
        ...


class QueueFull(Exception):  # noqa: N818 (not an error)
    """The queue is full; retry in about `retry_after_s` seconds."""

    def __init__(self, max_queue: int, retry_after_s: int) -> None:
        super().__init__(f"the queue is full ({max_queue} requests); try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(Exception):  # noqa: N818 (not an error)
    """A request exceeded its timeout, including queueing."""


class Event(NamedTuple):
    """Event of one request: an emission or an error."""

    key: Hashable
    emitted: Any
    """Emission of the engine, or None; with a finish_reason it is the request's last event."""
    error: Exception | None
    """DeadlineExceeded, or the exception of `admit`; the request's last event."""


@dataclass(slots=True)
class _Job:
    key: Hashable
    request: Any
    client: Hashable
    deadline_s: float
    timeout_s: float | None
    slot: int | None = None
    started_s: float = 0.0


class Scheduler:
    """A queue in front of an engine's slots; all work happens in `step`, in the caller's thread.

    Args:
        engine: Engine; its slots must not be used elsewhere.
        max_queue: Maximum number of queued requests, excluding running ones.
        clock: Monotonic clock, seconds.

    Reference:
        Yu et al. 2022, Orca: iteration-level scheduling. https://www.usenix.org/conference/osdi22/presentation/yu
    """

    def __init__(self, engine: HasSlots, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.max_queue = max_queue
        self._clock = clock
        self._jobs: dict[Hashable, _Job] = {}
        self._running: dict[int, _Job] = {}  # by slot
        self._waiting: dict[Hashable, deque[_Job]] = {}  # queues by client, never empty; in round-robin order
        self._num_queued = 0
        self._service_s = 1.0  # moving average of the time of a request in its slot

    @property
    def num_queued(self) -> int:
        """Number of queued requests."""
        return self._num_queued

    @property
    def num_active(self) -> int:
        """Number of running requests."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._jobs)

    def submit(self, key: Hashable, request: Any, client: Hashable = "", timeout_s: float | None = None) -> None:
        """Queue a request.

        Args:
            key: Unique key of the request in events and in `cancel`.
            request: Argument of the engine's `admit`.
            client: Client of the request; clients are served round-robin.
            timeout_s: Seconds until the request is aborted, queued or running; None for no timeout.

        Raises:
            QueueFull: If `max_queue` requests beyond the free slots are queued.
        """
        assert key not in self._jobs, f"request {key!r} already exists"
        if self._num_queued >= self.max_queue + self.engine.num_free:
            raise QueueFull(self.max_queue, self._retry_after_s())
        deadline_s = math.inf if timeout_s is None else self._clock() + timeout_s
        job = _Job(key, request, client, deadline_s, timeout_s)
        self._jobs[key] = job
        self._waiting.setdefault(client, deque()).append(job)
        self._num_queued += 1

    def cancel(self, key: Hashable) -> None:
        """Cancel a queued or running request; unknown keys are ignored, because it may just have finished."""
        job = self._jobs.pop(key, None)
        if job is None:
            return
        if job.slot is not None:
            del self._running[job.slot]
            self.engine.release(job.slot)
            return
        waiting = self._waiting[job.client]
        waiting.remove(job)
        self._num_queued -= 1
        if not waiting:
            del self._waiting[job.client]

    def step(self) -> list[Event]:
        """Abort expired requests, fill the free slots, and step the engine.

        Returns:
            Events in order. Every request that was not cancelled gets exactly one last event.
        """
        events = self._expire()
        while self._waiting and self.engine.num_free > 0:
            events += self._admit_next()
        if self._running:
            for emitted in self.engine.step():
                job = self._running[emitted.slot]
                if emitted.finish_reason is not None:
                    del self._running[emitted.slot], self._jobs[job.key]
                    self._service_s += 0.1 * (self._clock() - job.started_s - self._service_s)
                events.append(Event(job.key, emitted, None))
        return events

    def _expire(self) -> list[Event]:
        now_s = self._clock()
        late = [job for job in self._jobs.values() if job.deadline_s <= now_s]
        for job in late:
            self.cancel(job.key)
        return [Event(job.key, None, DeadlineExceeded(f"not finished within {job.timeout_s:g} s")) for job in late]

    def _admit_next(self) -> list[Event]:
        client = next(iter(self._waiting))
        waiting = self._waiting.pop(client)
        job = waiting.popleft()
        if waiting:
            self._waiting[client] = waiting  # to the end of the round
        self._num_queued -= 1
        try:
            job.slot = self.engine.admit(job.request)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with one request must not end the others)
            del self._jobs[job.key]
            return [Event(job.key, None, error)]
        job.started_s = self._clock()
        self._running[job.slot] = job
        return []

    def _retry_after_s(self) -> int:
        rounds = (self._num_queued + 1) / self.engine.num_slots
        return min(60, max(1, math.ceil(rounds * self._service_s)))

"""Who runs next: admission, fairness, cancellation and deadlines for whatever has slots. It knows no model and no torch.

Clients take turns, and one client's requests keep their order, so a client waits for at most one request of each other
client per request of its own. What already runs is never interrupted for another.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Emission(Protocol):
    """What one step gave one slot."""

    @property
    def slot(self) -> int:
        """The handle that `admit` returned."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """None while the request goes on; the slot is free when it is not."""
        ...


class HasSlots(Protocol):
    """What is scheduled: a fixed number of slots, a request in each."""

    @property
    def num_slots(self) -> int:
        """Requests that can run at once."""
        ...

    @property
    def num_free(self) -> int:
        """Requests that `admit` can still take."""
        ...

    def admit(self, request: Any, /) -> int:
        """Reserve a slot for a request and return its handle; an exception refuses this request alone."""
        ...

    def release(self, slot: int, /) -> None:
        """Forget what runs in a slot, which is free then."""
        ...

    def step(self) -> Sequence[Emission]:
        """Go on with all that run; several emissions of one slot are possible."""
        ...


class QueueFull(Exception):  # noqa: N818 (not an error)
    """As many requests wait as may; ask again in `retry_after_s` seconds, an estimate."""

    def __init__(self, max_queue: int, retry_after_s: int) -> None:
        super().__init__(
            f"{max_queue} requests are waiting already, which is the limit; try again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class DeadlineExceeded(Exception):  # noqa: N818 (not an error)
    """A request took longer than its timeout, waiting included."""


class Event(NamedTuple):
    """News of one request: a part of its answer, or why there will be none."""

    key: Hashable
    emitted: Any
    """What the engine emitted, or None; with a finish_reason it is the request's last event."""
    error: Exception | None
    """DeadlineExceeded, or what `admit` raised; the request's last event."""


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
    """A queue before an engine's slots; everything happens in `step`, in the caller's thread.

    Args:
        engine: Its slots must not be used by anything else.
        max_queue: Most requests that wait; those that run do not count.
        clock: Seconds that only grow.

    Reference:
        Yu et al. 2022, Orca: iteration-level scheduling. https://www.usenix.org/conference/osdi22/presentation/yu
    """

    def __init__(self, engine: HasSlots, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.max_queue = max_queue
        self._clock = clock
        self._jobs: dict[Hashable, _Job] = {}
        self._running: dict[int, _Job] = {}  # by slot
        self._waiting: dict[
            Hashable, deque[_Job]
        ] = {}  # by client, none empty; the order of the keys is whose turn it is
        self._num_queued = 0
        self._service_s = 1.0  # what a request takes in its slot, a moving average

    @property
    def num_queued(self) -> int:
        """Requests without a slot."""
        return self._num_queued

    @property
    def num_active(self) -> int:
        """Requests in slots."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._jobs)

    def submit(self, key: Hashable, request: Any, client: Hashable = "", timeout_s: float | None = None) -> None:
        """Queue a request.

        Args:
            key: Names the request in events and in `cancel`; of no other request that is queued or running.
            request: For the engine's `admit`.
            client: Whose it is; clients take turns.
            timeout_s: Seconds from now until the request is given up, wherever it is then; None is never.

        Raises:
            QueueFull: If `max_queue` requests wait that the free slots cannot take.
        """
        assert key not in self._jobs, f"request {key!r} is there already"
        if self._num_queued >= self.max_queue + self.engine.num_free:
            raise QueueFull(self.max_queue, self._retry_after_s())
        deadline_s = math.inf if timeout_s is None else self._clock() + timeout_s
        job = _Job(key, request, client, deadline_s, timeout_s)
        self._jobs[key] = job
        self._waiting.setdefault(client, deque()).append(job)
        self._num_queued += 1

    def cancel(self, key: Hashable) -> None:
        """Forget a request, queued or running; one that is unknown may just have finished, which is fine."""
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
        """Give up what is late, fill the free slots, let the engine go on.

        Returns:
            What happened, in order. Every request that was submitted and not cancelled gets exactly one last event.
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
            self._waiting[client] = waiting  # behind all others
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

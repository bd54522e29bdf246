"""The scheduler over an engine without a model: a state machine tries everything in any order."""

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanochat_lit.engine.scheduler import DeadlineExceeded, QueueFull, Scheduler


class Token(NamedTuple):
    slot: int
    finish_reason: str | None


class Slots:
    """Counts down: request n emits n tokens; a negative one is refused. Handles are never used twice."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots, self.left, self.next_slot, self.admitted = num_slots, {}, 0, []

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self.left)

    def admit(self, request: tuple[str, int]) -> int:
        assert self.num_free > 0
        if request[1] < 0:
            raise ValueError("bad request")
        self.admitted.append(request[0])
        self.next_slot += 1
        self.left[self.next_slot] = request[1]
        return self.next_slot

    def release(self, slot: int) -> None:
        del self.left[slot]

    def step(self) -> list[Token]:
        tokens = []
        for slot in list(self.left):
            self.left[slot] -= 1
            tokens.append(Token(slot, None if self.left[slot] > 0 else "stop"))
            if self.left[slot] <= 0:
                del self.left[slot]
        return tokens


class Machine(RuleBasedStateMachine):
    @initialize(num_slots=st.integers(1, 4), max_queue=st.integers(0, 8))
    def start(self, num_slots, max_queue):
        self.now_s = 0.0
        self.slots = Slots(num_slots)
        self.scheduler = Scheduler(self.slots, max_queue, lambda: self.now_s)
        self.open: dict[int, tuple[str, float]] = {}  # key: client, deadline
        self.waiting: dict[str, list[int]] = {}  # what has not been admitted, refused or given up, in order
        self.passed: dict[int, dict[str, int]] = {}  # waiting key: how often each other client went before it
        self.num_keys = 0

    @rule(client=st.sampled_from("abc"), length=st.integers(-1, 6), timeout_s=st.sampled_from([None, 0.5, 2.0]))
    def submit(self, client, length, timeout_s):
        key = self.num_keys = self.num_keys + 1
        room = self.scheduler.max_queue + self.slots.num_free
        try:
            self.scheduler.submit(key, (key, length), client, timeout_s)
        except QueueFull as full:
            assert self.scheduler.num_queued >= room
            assert 1 <= full.retry_after_s <= 60  # noqa: PT017 (there may be none)
            return
        assert self.scheduler.num_queued <= room
        self.open[key] = (client, float("inf") if timeout_s is None else self.now_s + timeout_s)
        self.waiting.setdefault(client, []).append(key)
        self.passed[key] = {}

    @rule(data=st.data())
    def cancel(self, data):
        key = data.draw(st.integers(0, self.num_keys + 1))  # also unknown and finished ones
        self.scheduler.cancel(key)
        self._forget(key)

    @rule(wait_s=st.sampled_from([0.0, 0.3, 1.0]))
    def step(self, wait_s):
        self.now_s += wait_s
        num_admitted = len(self.slots.admitted)
        late = {key for key, (_, deadline) in self.open.items() if deadline <= self.now_s}
        events = self.scheduler.step()
        for key in late:
            self.waiting[self.open[key][0]] = [k for k in self.waiting[self.open[key][0]] if k != key]
        refused = [e.key for e in events if e.error is not None and not isinstance(e.error, DeadlineExceeded)]
        for key in sorted([*self.slots.admitted[num_admitted:]], key=self.slots.admitted.index):
            self._check_turn(key, refused)
        for event in events:
            assert event.key in self.open, "an event after the last one, or after cancel"
            assert (event.emitted is None) == (event.error is not None)
            assert isinstance(event.error, DeadlineExceeded) == (event.key in late)
            if event.error is not None or event.emitted.finish_reason is not None:
                self._forget(event.key)
        assert not late & self.open.keys(), "a deadline passed unnoticed"
        if self.scheduler.num_queued:
            assert self.slots.num_free <= sum(e.emitted is not None for e in events), "slots idle while others wait"

    def _check_turn(self, key, refused):
        """First come first served within a client; another client goes first at most once per request of one's own."""
        client = self.open[key][0]
        mine = [k for k in self.waiting[client] if k not in refused]
        assert mine[0] == key
        self.waiting[client].remove(key)
        for other, keys in self.waiting.items():
            for place, waiting in enumerate(k for k in keys if other != client and k not in refused):
                count = self.passed[waiting][client] = self.passed[waiting].get(client, 0) + 1
                # those of its own that left the queue meanwhile had a turn each
                own_turns = waiting - min(self.passed)
                assert count <= 1 + place + own_turns, "starved"

    def _forget(self, key):
        if key in self.open:
            client, _ = self.open.pop(key)
            self.waiting[client] = [k for k in self.waiting[client] if k != key]

    @precondition(lambda self: hasattr(self, "scheduler"))
    @invariant()
    def nothing_leaks(self):
        scheduler = self.scheduler
        assert scheduler.num_active == self.slots.num_slots - self.slots.num_free
        assert scheduler.num_active + scheduler.num_queued == len(self.open)
        assert scheduler.has_work == bool(self.open)
        assert len(scheduler._jobs) == len(self.open)

    def teardown(self):
        if hasattr(self, "scheduler"):
            for _ in range(200):
                if not self.scheduler.has_work:
                    break
                self.step(0.0)
            assert not self.open, "a request never ended"
            assert not self.scheduler._waiting
            assert self.slots.num_free == self.slots.num_slots


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def admissions(scheduler: Scheduler, slots: Slots) -> list[object]:
    while scheduler.has_work:
        scheduler.step()
    return slots.admitted


def test_clients_take_turns():
    slots = Slots(1)
    scheduler = Scheduler(slots, 99)
    for number in range(3):
        scheduler.submit(f"a{number}", (f"a{number}", 1), "a")
    for client in "bc":
        scheduler.submit(client, (client, 1), client)
    assert admissions(scheduler, slots) == ["a0", "b", "c", "a1", "a2"]


def test_a_newcomer_waits_for_one_request_of_each_other_client():
    slots = Slots(1)
    scheduler = Scheduler(slots, 999)
    for number in range(300):
        scheduler.submit(number, (f"{'ab'[number % 2]}", 1), "ab"[number % 2])
    scheduler.step()
    scheduler.submit("new", ("new", 1), "c")
    assert admissions(scheduler, slots).index("new") <= 3


def test_the_queue_is_bounded_and_says_when_to_come_back():
    now_s = 0.0
    slots = Slots(2)
    scheduler = Scheduler(slots, 4, lambda: now_s)
    for number in range(6):  # two have slots to go to
        scheduler.submit(number, (number, 10))
    with pytest.raises(QueueFull, match=r"the queue is full \(4 requests\)") as full:
        scheduler.submit("more", ("more", 1))
    assert full.value.retry_after_s == 4  # seven in line for two slots, a second each
    scheduler.step()
    assert (scheduler.num_active, scheduler.num_queued) == (2, 4)
    with pytest.raises(QueueFull):
        scheduler.submit("more", ("more", 1))


def test_an_engine_that_breaks_is_not_hidden():
    slots = Slots(1)
    slots.step = lambda: 1 / 0
    scheduler = Scheduler(slots, 1)
    scheduler.submit("a", ("a", 1))
    with pytest.raises(ZeroDivisionError):
        scheduler.step()

"""The server's side of its workers without processes: heartbeats, hangs, pinned exports."""

import asyncio
import json
import time
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

pytest.importorskip("litserve", reason="needs pip install '.[serve]'")

from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve import api, workers
from nanochat_lit.serve.api import ChatAPI, ServeSettings, fingerprint_of
from nanochat_lit.serve.messages import Beat, Failed, Ready, Report
from nanochat_lit.serve.metrics import ServerMetrics
from nanochat_lit.serve.workers import WorkerPool


class FakeWorker:
    """What the pool knows of a worker, without a process."""

    def __init__(self, silent_s: float) -> None:
        self.index, self.ready, self.has_given_up = 0, Ready(1, 64, SamplingParams(), "kernel"), False
        self.heard_s = time.monotonic() - silent_s
        self.report, self.replies, self.num_killed = Report(0, 0, []), {}, 0
        self.process = SimpleNamespace(kill=self.kill, exitcode=-9)

    is_able = workers._Worker.is_able

    def kill(self) -> None:
        self.num_killed += 1


def test_silent_workers_are_not_counted_and_then_killed(monkeypatch, capsys):
    """Whether or not anybody waits for an answer."""
    monkeypatch.setattr(workers, "WATCH_EVERY_S", 0.01)
    pool = WorkerPool(ServeSettings(model="m", name="m"), "", [None] * 3, ServerMetrics(), print, print)
    heard, silent, hung = pool._workers = [FakeWorker(0.0), FakeWorker(4.0), FakeWorker(9.0)]
    told = []
    hung.replies[1] = SimpleNamespace(put=told.append)

    async def watch() -> None:
        task = asyncio.ensure_future(pool._watch())
        await asyncio.sleep(0.1)
        pool._is_closing = True
        await task

    assert pool.num_ready == 1
    asyncio.run(watch())
    assert [worker.num_killed for worker in (heard, silent, hung)] == [0, 0, 1]
    assert [update.error[0] for update in told] == [504]
    assert pool.num_ready == 1
    pool._receive(silent, Beat())
    assert pool.num_ready == 2
    assert "worker 0 has been silent for 8 s" in capsys.readouterr().err


def test_a_pause_of_the_server_itself_is_not_the_workers(monkeypatch):
    monkeypatch.setattr(workers, "WATCH_EVERY_S", 0.01)
    pool = WorkerPool(ServeSettings(model="m", name="m"), "", [None], ServerMetrics(), print, print)
    pool._workers = [FakeWorker(7.9)]

    async def watch() -> None:
        task = asyncio.ensure_future(pool._watch())
        await asyncio.sleep(0)
        time.sleep(0.5)
        await asyncio.sleep(0.02)
        pool._is_closing = True
        await task

    asyncio.run(watch())
    assert pool._workers[0].num_killed == 0


def test_a_worker_that_may_not_start_ends_the_server_only_if_it_is_the_last():
    failures = []
    pool = WorkerPool(
        ServeSettings(model="m", name="m"), "", [None] * 2, ServerMetrics(), print, lambda *told: failures.append(told)
    )
    one, other = pool._workers = [FakeWorker(0.0), FakeWorker(0.0)]
    other.index, one.ready = 1, None
    pool._receive(one, Failed("changed"))
    assert (failures, one.has_given_up) == ([], True)
    other.ready = None
    pool._receive(other, Failed("changed"))
    assert failures == [("changed", 2)]


def test_a_worker_loads_only_the_export_that_the_server_was_started_with(make_export):
    export = make_export(sequence_len=64)
    settings = ServeSettings(model=str(export), name="m", num_slots=1, compute_dtype="float32")
    right = fingerprint_of(settings)
    for fingerprint, failure in ((right, None), ("another", f"{export} has changed since the server started")):
        api = ChatAPI(settings, fingerprint)
        api.setup("cpu")
        assert api.failure is failure if failure is None else str(api.failure).startswith(failure)
    (export / "notes.txt").write_text("not part of it")
    assert fingerprint_of(settings) == right
    text = (export / "generation.json").read_text()
    (export / "generation.json").write_text(text.replace("16", "17"))
    assert fingerprint_of(settings) != right


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 50.5),
        ("top_k", True),
        ("max_new_tokens", "64"),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_k", -1),
    ],
)
def test_settings_of_an_export_are_checked_before_it_is_served(make_export, name, value):
    export = make_export(sequence_len=64)
    (export / "generation.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 50, "max_new_tokens": 16, name: value})
    )
    settings = ServeSettings(model=str(export), name="m")
    api = ChatAPI(settings, fingerprint_of(settings))
    api.setup("cpu")
    assert f"generation.json: {name} is " in str(api.failure)


def test_a_worker_beats_while_it_waits_and_while_it_works(monkeypatch):
    monkeypatch.setattr(api, "BEAT_EVERY_S", 0.02)
    inbox: SimpleQueue = SimpleQueue()
    start_s = time.monotonic()
    assert list(api._messages(inbox, wait=True)) == []
    assert time.monotonic() - start_s < 1
    inbox.put(1)
    assert list(api._messages(inbox, wait=True)) == [1]


@pytest.mark.parametrize("error", [RuntimeError("the handler is closed"), BrokenPipeError()])
def test_a_worker_that_has_just_died_takes_messages_without_an_error(error):
    """Its end is noticed a moment later, and then its requests are told."""

    def write(content: bytes) -> None:
        raise error

    workers._Worker.send(SimpleNamespace(_writer=SimpleNamespace(write=write)), Beat())


def test_a_watch_that_fails_ends_the_server_which_would_no_longer_notice_hangs(monkeypatch, capsys):
    monkeypatch.setattr(workers, "WATCH_EVERY_S", 0.01)
    ends = []
    pool = WorkerPool(
        ServeSettings(model="m", name="m"), "", [None], ServerMetrics(), print, lambda *told: ends.append(told)
    )
    pool._measure = lambda: 1 / 0

    async def watch() -> None:
        pool._start(pool._watch())
        await asyncio.sleep(0.1)

    asyncio.run(watch())
    assert ends == [("the workers can no longer be watched (ZeroDivisionError: division by zero)", 1)]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_the_pool_goes_on_when_the_reader_of_its_log_has_gone(monkeypatch, error):
    def write(text: str) -> None:
        raise error

    monkeypatch.setattr(workers.sys, "stderr", SimpleNamespace(write=write, flush=write))
    workers.log("worker 0 ended with status -9; starting another")

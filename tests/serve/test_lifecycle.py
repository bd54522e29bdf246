"""Ends and deaths of servers and workers: nothing is orphaned, health tells the truth, exit statuses mean something."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from nanochat_lit.commands.serve import serve
from nanochat_lit.common.errors import UserError

LONG = {"max_tokens": 400, "temperature": 1, "seed": 1}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ready(server) -> int:
    with contextlib.suppress(OSError):  # it has ended
        return json.loads(server.request("/health")[2])["ready"]
    return 0


def test_a_worker_dies_then_the_server_ends(start_server):
    """A dead worker's requests get 503 and it is replaced; SIGTERM lets answers finish; status 0, nobody is left."""
    server = start_server("--slots", "2")
    (first,) = server.workers()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        os.kill(first, signal.SIGSTOP)
        answers = [pool.submit(server.chat, **LONG, stream=stream) for stream in (False, True)]
        server.wait(lambda: server.metric("nanochat_requests_in_flight") == 2)
        os.kill(first, signal.SIGKILL)
        assert [answer.result()[0] for answer in answers] == [503, 503]
        assert server.request("/health")[0] == 503
        server.wait(server.is_healthy, 120)
        assert server.metric("nanochat_worker_restarts_total") == 1
        (second,) = server.workers()
        os.kill(second, signal.SIGSTOP)  # or it might have answered before anyone looks
        answers = [pool.submit(server.chat, **LONG) for _ in range(3)]  # one of them waits
        server.wait(lambda: server.metric("nanochat_requests_in_flight") == 3)
        os.kill(second, signal.SIGCONT)
        os.killpg(server.process.pid, signal.SIGTERM)  # to all, as systemd does
        assert [answer.result()[0] for answer in answers] == [200] * 3
    assert server.process.wait(30) == 0
    assert not any(map(is_alive, (first, second)))
    assert "Traceback" not in server.log.read_text()


def test_the_first_request_waits_for_nothing(start_server):
    """What has to be loaded, built or allocated once is so before the server is healthy: 0.2 s are for a busy machine."""
    server = start_server("--slots", "2")
    times_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        assert server.chat(max_tokens=8, temperature=0)[0] == 200
        times_s.append(time.perf_counter() - start_s)
    first_s, *later_s = times_s
    assert first_s < max(later_s) + 0.2


@pytest.mark.slow
def test_sigterm_tells_those_who_take_too_long(start_server):
    server = start_server("--drain_timeout_s", "0.2")
    (worker,) = server.workers()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        os.kill(worker, signal.SIGSTOP)  # the answer never comes
        answer = pool.submit(server.chat, **LONG)
        server.wait(lambda: server.metric("nanochat_requests_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        status, body = answer.result()
    assert (status, body["error"]["message"]) == (503, "the server is shutting down")
    assert server.process.wait(30) == 0
    assert not is_alive(worker)


@pytest.mark.slow
def test_workers_that_die_are_replaced_until_it_is_hopeless(start_server):
    server = start_server("--workers", "2")
    first, second = server.workers()
    assert json.loads(server.request("/health")[2])["workers"] == 2
    server.wait(lambda: json.loads(server.request("/health")[2])["ready"] == 2, 120)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for worker in (first, second):
            os.kill(worker, signal.SIGSTOP)
        answers = [pool.submit(server.chat, **LONG) for _ in range(4)]  # two for each
        server.wait(lambda: server.metric("nanochat_requests_in_flight") == 4)
        os.kill(first, signal.SIGKILL)
        os.kill(second, signal.SIGCONT)
        outcomes = sorted(answer.result()[0] for answer in answers)
    assert outcomes == [200, 200, 503, 503]  # only the dead worker's requests suffer
    server.wait(lambda: json.loads(server.request("/health")[2])["ready"] == 2, 120)
    assert server.metric("nanochat_worker_restarts_total") == 1
    # all at once, and again: nobody is left to answer, and health says so; the server ends
    while server.process.poll() is None:
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        server.wait(lambda: not server.is_healthy(), 10)  # told so, or nobody is there to tell
        server.wait(lambda: server.process.poll() is not None or ready(server) == 2, 120)
    assert server.process.returncode == 1
    assert "repeatedly exited" in server.log.read_text()
    assert not server.workers()


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_server(start_server):
    server = start_server()
    workers = server.workers()
    server.process.kill()
    server.wait(lambda: not any(map(is_alive, workers)), 10)


@pytest.mark.slow
def test_health_is_red_while_the_model_is_loaded(start_server):
    server = start_server(wait=False)
    answers = []
    deadline = time.monotonic() + 120
    while 200 not in answers and time.monotonic() < deadline:
        try:
            answers.append(server.request("/health")[0])
        except OSError:  # noqa: PERF203
            time.sleep(0.01)
    assert set(answers) == {503, 200}


@pytest.mark.slow
def test_damaged_weights_end_the_server_with_a_message(make_export, start_server):
    export = make_export(sequence_len=65)
    (export / "config.json").unlink()
    server = start_server(model=export, wait=False)
    assert server.process.wait(120) == 2
    assert "config.json missing" in server.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_504(start_server, stream):
    server = start_server("--request_timeout_s", "1", "--slots", "1")
    assert server.chat(max_tokens=2)[0] == 200
    (worker,) = server.workers()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        os.kill(worker, signal.SIGSTOP)  # as if the model were slow
        answers = [pool.submit(server.chat, **LONG, stream=stream) for _ in range(3)]
        time.sleep(1.5)
        os.kill(worker, signal.SIGCONT)
        for answer in answers:
            status, body = answer.result()
            assert (status, body["error"]["code"]) == (504, "timeout")
    assert server.chat(max_tokens=2)[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("is_patient", [True, False])
def test_a_worker_that_hangs_is_noticed_and_replaced(start_server, is_patient):
    """Whether clients wait or give up; /health tells within 5 s, the worker is killed within 15."""
    server = start_server("--slots", "2")
    (worker,) = server.workers()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        os.kill(worker, signal.SIGSTOP)
        begin_s = time.monotonic()
        answer = pool.submit(server.chat, 60 if is_patient else 1, **LONG)
        streamed = server.open_stream(**LONG)
        server.wait(lambda: not server.is_healthy(), 5)
        server.wait(lambda: not is_alive(worker), 15 - (time.monotonic() - begin_s))
        if is_patient:
            assert answer.result()[0] == 504
        else:
            with pytest.raises(TimeoutError):
                answer.result()
    assert b"hangs" in streamed.recv(65_536)
    streamed.close()
    server.wait(server.is_healthy, 120)
    assert server.chat(max_tokens=2)[0] == 200
    assert server.metric("nanochat_worker_restarts_total") == 1


@pytest.mark.slow
def test_another_export_in_the_place_of_the_first_is_not_served(make_export, start_server):
    export, other = make_export(sequence_len=66), make_export(sequence_len=67)
    server = start_server(model=export)
    assert server.chat(max_tokens=2)[0] == 200
    shutil.rmtree(export)
    shutil.copytree(other, export)
    assert server.chat(max_tokens=2)[0] == 200  # what is loaded stays
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    assert server.process.wait(60) == 2
    assert "has changed since the server started" in server.log.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "num_slots is 0"),
        ({"workers": 0}, "workers 0"),
        ({"devices": 2, "device": "cpu"}, "devices is 2"),
        ({"port": 70000}, "port is 70000"),
        ({"host": "256.0.0.1"}, "cannot listen on 256.0.0.1"),
        ({"api_key": ""}, "printable ASCII"),
        ({"api_key": "schlüssel"}, "printable ASCII"),
        ({"hang_timeout_s": 0.5}, "hang_timeout_s is 0.5; use at least 2 seconds"),
        ({"request_timeout_s": float("nan")}, "request_timeout_s is nan"),
        ({"model": "nowhere"}, "nowhere does not exist; give an export"),
    ],
)
def test_mistakes_are_told_before_anything_starts(make_export, options, message):
    with pytest.raises(UserError, match=message):
        serve(**{"model": str(make_export()), "port": 0, **options})

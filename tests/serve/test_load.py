"""Mixed load: good requests, clients that leave, bodies that are wrong, all at once; afterwards everything is as before."""

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

STATUSES = {200, 400, 401, 404, 405, 413, 429}


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def num_handles(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Client(threading.Thread):
    """Does one odd thing after another until the time is over."""

    allowed = STATUSES
    ends = (b"data: [DONE]\n\n",)

    def __init__(self, server, seed: int, until_s: float) -> None:
        super().__init__()
        self.server, self.rng, self.until_s = server, random.Random(seed), until_s
        self.statuses: list[int] = []
        self.failures: list[str] = []

    def acts(self) -> list[Callable[[], None]]:
        """What it does, as often as it is named."""
        rare = [self.break_off, self.nonsense, self.too_much, self.stray, self.dawdle, self.flood]
        return [self.ask] * 3 + [self.leave] * 2 + rare

    def run(self) -> None:
        while time.monotonic() < self.until_s:
            act = self.rng.choice(self.acts())
            try:
                act()
            except Exception as error:  # noqa: BLE001 (all are reported)
                self.failures.append(f"{act.__name__}: {error!r}")

    def check(self, status: int, text: bytes) -> None:
        self.statuses.append(status)
        if status not in self.allowed:
            self.failures.append(f"{status} {text[:300]!r}")
        elif status != 200 and set(json.loads(text)["error"]) != {"message", "type", "param", "code"}:
            self.failures.append(f"shape: {text[:300]!r}")

    def ask(self) -> None:
        stream = self.rng.random() < 0.5
        fields = {
            "max_tokens": self.rng.randint(1, 60),
            "temperature": self.rng.choice([0, 1]),
            "user": self.rng.choice("abc"),
        }
        body = {
            "messages": [{"role": "user", "content": "hello " * self.rng.randint(1, 40)}],
            "stream": stream,
            **fields,
        }
        status, _, text = self.server.request("/v1/chat/completions", json.dumps(body).encode())
        self.check(status, text)
        if status == 200 and stream and not text.endswith(self.ends):
            self.failures.append(f"a stream that does not end: {text[-300:]!r}")

    def leave(self) -> None:
        connection = self.server.open_stream(max_tokens=400, temperature=1, stream=self.rng.random() < 0.7)
        time.sleep(self.rng.random() * 0.2)
        connection.close()

    def break_off(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{")
            if self.rng.random() < 0.5:  # gone at once, without a goodbye
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def dawdle(self) -> None:
        """A head that does not arrive."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(self.rng.choice([b"", b"GE", b"GET / HTTP/1.1\r\nHost: localhost\r\n"]))
            time.sleep(self.rng.random())

    def flood(self) -> None:
        """A head that does not end."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            try:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: ")
                for _ in range(100):
                    connection.sendall(self.rng.choice([b"a" * 10_000, b"A: b\r\n" * 2_000]))
                said = connection.recv(1000)
            except ConnectionError:
                return
        if b" 431 " not in said and b" 400 " not in said and said:
            self.failures.append(f"a megabyte of headers was taken: {said!r}")

    def nonsense(self) -> None:
        raw = self.rng.choice([b"", b"\xff" * 50, b"[1]", b'{"messages": 3}', b'{"n": 7}', b'{"model": "x"}'])
        status, _, text = self.server.request("/v1/chat/completions", raw)
        self.check(status, text)

    def too_much(self) -> None:
        try:
            status, _, text = self.server.request("/v1/chat/completions", b"x" * 1_100_000)
            self.check(status, text)
        except ConnectionError:
            pass  # refused before all of it was sent

    def stray(self) -> None:
        path = self.rng.choice(["/", "/v1", "/metrics", "/v1/models", "/v1/models/../..", "/v1/models/%00"])
        status, _, text = self.server.request(path, Authorization=self.rng.choice(["Bearer secret", ""]))
        self.check(status, text)


def load(server, num_clients: int, seconds: float) -> None:
    def burst(length_s: float, seed: int) -> list[Client]:
        clients = [Client(server, seed + n, time.monotonic() + length_s) for n in range(num_clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        server.wait(server.is_idle, 30)
        return clients

    pids = [server.process.pid, *server.workers()]
    burst(min(2.0, seconds / 3), 1000)  # what is allocated once
    time.sleep(0.5)
    before = [(resident_bytes(pid), num_handles(pid)) for pid in pids]
    clients = burst(seconds, 0)
    assert [failure for client in clients for failure in client.failures] == []
    statuses = [status for client in clients for status in client.statuses]
    assert {200, 400, 401, 404, 413} <= set(statuses)
    # closed connections take uvicorn a moment
    server.wait(lambda: [num_handles(p) for p in pids] <= [handles for _, handles in before], 15)
    for pid, (memory, _) in zip(pids, before, strict=True):
        # 20 MB is below 10 kB for each of the thousands of requests, and what the allocator may keep
        assert resident_bytes(pid) - memory < 20e6, f"process {pid} has grown"
    assert server.workers() == pids[1:], "a worker was replaced"
    assert server.metric("nanochat_slots_active") == server.metric("nanochat_queue_requests") == 0
    assert server.chat(max_tokens=2)[0] == 200


def test_half_a_minute_of_everything(server):
    load(server, num_clients=8, seconds=30)


@pytest.mark.slow
def test_ten_minutes_of_everything(start_server):
    load(start_server("--slots", "8", "--max_queue", "8", "--api_key", "secret"), num_clients=24, seconds=600)


class RoughClient(Client):
    """One that knows that workers die."""

    allowed = STATUSES | {503, 504}
    ends = (b"data: [DONE]\n\n", b"}}\n\n")


class Health(threading.Thread):
    """Asks for the health all the time: (when, how many workers are said to be ready)."""

    def __init__(self, server, until_s: float) -> None:
        super().__init__()
        self.server, self.until_s = server, until_s
        self.seen: list[tuple[float, int]] = []
        self.failures: list[str] = []
        self.slowest_s = 0.0

    def run(self) -> None:
        while time.monotonic() < self.until_s:
            start_s = time.monotonic()
            try:
                status, _, text = self.server.request("/health")
            except OSError as error:
                self.failures.append(repr(error))
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - start_s)
            number = json.loads(text)["ready"]
            if status != (200 if number else 503):
                self.failures.append(f"{status} {text!r}")
            self.seen.append((start_s, number))
            time.sleep(0.1)


@pytest.mark.slow
def test_ten_minutes_with_workers_that_hang_and_die(start_server):
    """/health tells of every hang and death within 5 s, a worker that hangs is gone within 15, and nothing leaks."""
    seconds = 600.0
    server = start_server("--workers", "2", "--slots", "4", "--max_queue", "8", "--api_key", "secret")
    server.wait(lambda: len(server.workers()) == 2 and server.metric("nanochat_workers_ready") == 2, 120)
    until_s = time.monotonic() + seconds
    clients = [RoughClient(server, number, until_s) for number in range(12)]
    health = Health(server, until_s)
    handles = num_handles(server.process.pid)
    for thread in (health, *clients):
        thread.start()
    rng, damage = random.Random(0), []
    while time.monotonic() < until_s - 90:
        time.sleep(rng.uniform(1, 15))
        victim, kind = rng.choice(server.workers()), rng.choice([signal.SIGSTOP, signal.SIGKILL])
        os.kill(victim, kind)
        damage.append(time.monotonic())
        server.wait(lambda victim=victim: victim not in server.workers(), 15)
        server.wait(lambda: server.metric("nanochat_workers_ready") == 2, 90)
    for thread in (health, *clients):
        thread.join()
    assert [failure for thread in (health, *clients) for failure in thread.failures] == []
    assert sum(status == 200 for client in clients for status in client.statuses) > 100
    assert len(damage) > 5
    assert server.metric("nanochat_worker_restarts_total") == len(damage)
    for time_s in damage:
        told_s = next(seen_s for seen_s, number in health.seen if seen_s >= time_s and number < 2)
        assert told_s - time_s < 5
    assert health.slowest_s < 5
    server.wait(server.is_idle, 60)
    server.wait(lambda: num_handles(server.process.pid) <= handles + 2, 30)
    assert server.process.poll() is None
    assert server.chat(max_tokens=2)[0] == 200
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert not server.workers()

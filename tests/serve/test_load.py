"""Mixed load: good requests, clients that leave, bodies that are wrong, all at once; afterwards everything is as before."""

import json
import random
import socket
import threading
import time
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

    def __init__(self, server, seed: int, until_s: float) -> None:
        super().__init__()
        self.server, self.rng, self.until_s = server, random.Random(seed), until_s
        self.statuses: list[int] = []
        self.failures: list[str] = []

    def run(self) -> None:
        acts = [
            self.ask,
            self.ask,
            self.ask,
            self.leave,
            self.leave,
            self.break_off,
            self.nonsense,
            self.too_much,
            self.stray,
        ]
        while time.monotonic() < self.until_s:
            act = self.rng.choice(acts)
            try:
                act()
            except Exception as error:  # noqa: BLE001 (all are reported)
                self.failures.append(f"{act.__name__}: {error!r}")

    def check(self, status: int, text: bytes) -> None:
        self.statuses.append(status)
        if status not in STATUSES:
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
        if status == 200 and stream and not text.endswith(b"data: [DONE]\n\n"):
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

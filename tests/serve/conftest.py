"""A real server in a process of its own, on a random tiny model."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat_lit.engine.export import save_export

START_TIMEOUT_S = 120.0
"""Importing torch takes seconds, and more when others use the machine."""


KEY = "secret"


class Server:
    """A running `nanochat-lit serve`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self.url = f"http://127.0.0.1:{port}"

    def request(
        self, path: str, body: bytes | None = None, timeout_s: float = 60, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case and body; POST where there is a body to send."""
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request(
                "GET" if body is None else "POST", path, body, {"Authorization": f"Bearer {KEY}", **headers}
            )
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()

    def chat(self, timeout_s: float = 60, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Ask something; fields are those of the body."""
        body = {"messages": [{"role": "user", "content": "hello"}], **fields}
        status, _, text = self.request("/v1/chat/completions", json.dumps(body).encode(), timeout_s)
        return status, json.loads(text)

    def open_stream(self, **fields: Any) -> socket.socket:
        """A connection on which an answer is being streamed; nothing of it is read."""
        body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, **fields}
        text = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(text)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + text)
        return connection

    def metric(self, name: str) -> float:
        """One value of /metrics, without labels."""
        text = self.request("/metrics")[2].decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.split()[0] == name)

    def wait(self, what: Callable[[], bool], timeout_s: float = 30) -> None:
        """Until something is so."""
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {self.log.read_text()[-2000:]}"
            time.sleep(0.02)

    def is_idle(self) -> bool:
        names = ("nanochat_slots_active", "nanochat_queue_requests", "nanochat_requests_in_flight")
        return all(self.metric(name) == 0 for name in names)

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return self.request("/health")[0] == 200
        return False

    def workers(self) -> list[int]:
        """Process ids of what the server has started and is alive: its children and theirs."""
        found, parents = [], {self.process.pid}
        tables = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                after = stat.read_text().rpartition(")")[2].split()
                if after[0] != "Z":
                    tables[int(stat.parent.name)] = int(after[1])
        while new := [pid for pid, parent in tables.items() if parent in parents and pid not in found]:
            found += new
            parents |= set(new)
        workers = []
        for pid in found:
            with contextlib.suppress(OSError):  # it has just ended
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    workers.append(pid)
        return workers


@pytest.fixture(scope="session")
def make_export(random_model, tokenizer, tmp_path_factory) -> Callable[..., Path]:
    def make(**fields: Any) -> Path:
        folder = tmp_path_factory.mktemp("run") / "tiny" / "export"
        save_export(folder, random_model(**{"sequence_len": 512, **fields}), tokenizer, {"max_new_tokens": 16})
        return folder

    return make


@pytest.fixture(scope="session")
def start_server(make_export, tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """Start servers; those that still run are ended with the tests."""
    servers = []
    export = make_export()

    def start(*options: str, model: Path = export, wait: bool = True) -> Server:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = tmp_path_factory.mktemp("server") / "log.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("NANOCHAT_API_KEY", None)
        command = [sys.executable, "-m", "nanochat_lit", "serve", "--model", str(model), "--port", str(port), *options]
        command += ["--compute_dtype", "float32", "--device", "cpu"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        servers.append(Server(process, port, log))
        if wait:
            servers[-1].wait(servers[-1].is_healthy, START_TIMEOUT_S)
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(30)
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def server(start_server) -> Server:
    """Shared by tests that leave it as it is: 4 slots, 4 that may wait, a key, pages of one origin may call it."""
    origins = '["https://page.example"]'
    return start_server("--slots", "4", "--max_queue", "4", "--api_key", KEY, "--cors_origins", origins)

"""Detects within seconds that a rank has died, and ends the other ranks with a one-line error.

Otherwise a dead rank is noticed only in the next collective: immediately with gloo, but after the timeout of the
process group (half an hour) with NCCL. Lightning's launcher and SLURM do not cover every case. Here every rank keeps an
idle connection to rank 0. The operating system closes it when a process ends for any reason; TCP keep-alive detects an
unreachable machine.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from typing import Any

import torch.distributed as dist

KEEP_ALIVE_S = 10
"""TCP keep-alive: seconds of silence before the first of three probes, and between probes."""

CONNECT_TIMEOUT_S = 60

GRACE_S = 3.0
"""Seconds a rank waits for its own error after another rank's failure, so that a shared error is reported once."""

EXIT_STATUS = 1


class RankWatch:
    """Connects this rank to the others and watches them from a thread.

    Use it within the lifetime of the process group; with one rank it does nothing.

    Args:
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._peers: dict[socket.socket, int] = {}
        self._lock = threading.Lock()
        self._over = False  # this rank has finished, or reports its own failure
        self._rank_zero_ended = threading.Event()
        if world_size > 1:
            self._connect()
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def finish(self) -> None:
        """Announce a normal exit of this rank."""
        self._leave({"done": True})

    def fail(self, error: BaseException) -> None:
        """Send this rank's error to the others, which exit; rank 0 prints it.

        A failed collective is not an error of this rank: if another one has died, the process exits here.
        """
        words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
        is_collective = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
        if is_collective or isinstance(error, dist.DistError):
            time.sleep(GRACE_S)
        self._leave({"failed": self.rank, "why": f"{type(error).__name__}: {error}".splitlines()[0]})
        if self.rank != 0:
            self._rank_zero_ended.wait(2 * GRACE_S)  # otherwise the launcher might kill rank 0 before it prints

    def _connect(self) -> None:
        """Connect all ranks to rank 0, whose address is broadcast through the process group."""
        if self.rank == 0:
            self._accept()
        else:
            address: list[Any] = [None]
            dist.broadcast_object_list(address, src=0)
            host, port, token = address[0]
            peer = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
            peer.settimeout(None)
            peer.sendall(token + self.rank.to_bytes(4, "big"))
            self._peers[peer] = 0
        keep_alive = (("TCP_KEEPIDLE", KEEP_ALIVE_S), ("TCP_KEEPINTVL", KEEP_ALIVE_S), ("TCP_KEEPCNT", 3))
        for peer in self._peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in keep_alive:
                if hasattr(socket, name):  # the option names are platform-dependent
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _accept(self) -> None:
        has_ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
        token = secrets.token_bytes(16)  # rejects unrelated connections to the port
        with socket.create_server(("", 0), family=family, backlog=self.world_size, dualstack_ipv6=has_ipv6) as server:
            server.settimeout(CONNECT_TIMEOUT_S)
            host = os.environ.get("MASTER_ADDR") or "127.0.0.1"  # where other ranks reach the process group of rank 0
            dist.broadcast_object_list([(host, server.getsockname()[1], token)], src=0)
            while len(self._peers) < self.world_size - 1:
                peer, _ = server.accept()
                peer.settimeout(CONNECT_TIMEOUT_S)
                hello = _read(peer, len(token) + 4)
                if hello[: len(token)] == token:
                    peer.settimeout(None)
                    self._peers[peer] = int.from_bytes(hello[len(token) :], "big")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = key.fileobj
                    assert isinstance(peer, socket.socket)
                    news = _receive(peer)
                    if news.get("done"):
                        selector.unregister(peer)
                    else:
                        self._end(self._peers[peer], news)
                        return

    def _end(self, peer: int, news: dict[str, Any]) -> None:
        """Handle the end of another rank: forward the news, report it, and exit."""
        if peer == 0:
            self._rank_zero_ended.set()
        if self._over:
            return
        failed = news.get("failed", peer)
        self._tell({"failed": failed, "why": news.get("why", "")})
        if "failed" in news:
            time.sleep(GRACE_S)  # this rank's main thread may be about to report the same error
        if self._over:
            return
        if self.rank == 0 or "failed" not in news:
            if reason := news.get("why"):
                text = f"rank {failed} failed with {reason}"
            else:
                text = f"rank {failed} died without an error message (killed, or out of memory?)"
            line = f"error: {text}; rank {self.rank} exits too. Resume from the last checkpoint with --ckpt_path last"
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), (line + "\n").encode())
        os._exit(EXIT_STATUS)  # the main thread may be blocked in a collective that never completes

    def _leave(self, news: dict[str, Any]) -> None:
        if not self._over:
            self._over = True
            self._tell(news)

    def _tell(self, news: dict[str, Any]) -> None:
        with self._lock:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.sendall((json.dumps(news) + "\n").encode())


def _read(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := peer.recv(count - len(data))):
        data += more
    return data


def _receive(peer: socket.socket) -> dict[str, Any]:
    """Return the message that a rank sends before it exits; empty if it sent none."""
    line = b""
    with contextlib.suppress(OSError):
        while not line.endswith(b"\n") and (more := peer.recv(4096)):
            line += more
    return json.loads(line) if line.endswith(b"\n") else {}

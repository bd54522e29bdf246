"""Many clients at once, and what they have to wait: the measuring side of `bench serve`.

HTTP is written by hand over asyncio, and an answer is understood only when it is whole: general clients take as long for a
chunk as a small model for a token, on the same cores.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np


@dataclass
class Answered:
    """One request as its client saw it."""

    status: int = 0
    num_tokens: int = 0
    start_s: float = 0.0
    event_s: list[float] = field(default_factory=list)
    """When each piece of text arrived."""


@dataclass
class LoadResult:
    """All requests of one concurrency."""

    concurrency: int
    answers: list[Answered]
    seconds: float

    def row(self) -> dict[str, Any]:
        """Figures in plain JSON; times in milliseconds."""
        good = [answer for answer in self.answers if answer.status == 200 and answer.event_s]
        num_tokens = sum(answer.num_tokens for answer in good)
        first = [1e3 * (answer.event_s[0] - answer.start_s) for answer in good]
        gaps = [1e3 * gap for answer in good for gap in np.diff(answer.event_s)]
        per_token = [
            1e3 * (answer.event_s[-1] - answer.event_s[0]) / (answer.num_tokens - 1)
            for answer in good
            if answer.num_tokens > 1
        ]
        return {
            "concurrency": self.concurrency,
            "requests": len(self.answers),
            "errors": len(self.answers) - len(good),
            "tokens_per_s": num_tokens / self.seconds,
            "num_tokens": num_tokens,
            "first_token_ms": percentiles(first),
            "inter_token_ms": percentiles(per_token),
            "gap_ms": percentiles(gaps),
        }


async def run_load(url: str, bodies: Sequence[dict[str, Any]], concurrency: int, api_key: str | None) -> LoadResult:
    """Ask all of `bodies`, `concurrency` at a time, streamed.

    Args:
        url: Of the server, without a path.
        bodies: Of POST /v1/chat/completions; what streaming needs is added.
        concurrency: Clients; each asks its next as soon as its last is answered.
        api_key: The server's.
    """
    waiting = iter(bodies)
    answers: list[Answered] = []

    async def client() -> None:
        connection = Connection(url, api_key)
        for body in waiting:  # shared: whoever is free takes the next
            answers.append(await connection.ask(body))  # noqa: PERF401 (each when it is there)
        connection.close()

    start_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return LoadResult(concurrency, answers, time.perf_counter() - start_s)


class Connection(asyncio.Protocol):
    """A client, which keeps its connection from answer to answer.

    Args:
        url: Of the server.
        api_key: The server's.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "", parts.port or 80
        key = "" if api_key is None else f"Authorization: Bearer {api_key}\r\n"
        self._head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}Content-Length: "
        self._transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self._times_s: list[float] = []
        self._done: asyncio.Future[None] | None = None

    @property
    def is_answered(self) -> bool:
        """Whether an answer has begun to arrive and is not over."""
        return bool(self._chunks) and self._done is not None and not self._done.done()

    async def ask(self, body: dict[str, Any]) -> Answered:
        """One request and its answer."""
        text = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        loop = asyncio.get_running_loop()
        self._chunks, self._times_s, self._done = [], [], loop.create_future()
        start_s = time.perf_counter()
        try:
            if self._transport is None:
                await loop.create_connection(lambda: self, *self._address)
            assert self._transport is not None, "it is connected"
            self._transport.write(f"{self._head}{len(text)}\r\n\r\n{text}".encode())
            await self._done
        except OSError:
            return Answered(start_s=start_s)
        answer = read_answer(self._chunks, self._times_s)
        answer.start_s = start_s
        if answer.status != 200:
            self.close()  # its end was a guess
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # what asyncio calls

    def connection_made(self, transport: Any) -> None:
        """Keep what can be written to."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep what came and when; see whether it was the end."""
        self._times_s.append(time.perf_counter())
        self._chunks.append(data)
        # an answer ends with an empty chunk of HTTP; an error has no chunks and comes at once
        is_error = len(self._chunks) == 1 and b" 200 " not in data[:20]
        if (is_error or data.endswith(b"\r\n0\r\n\r\n")) and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._transport = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc if isinstance(exc, OSError) else ConnectionError("the server hung up"))


def read_answer(chunks: Sequence[bytes], times_s: Sequence[float]) -> Answered:
    """What a streamed answer holds, from what arrived when."""
    answer, rest = Answered(), b""
    try:
        answer.status = int(chunks[0].split(maxsplit=2)[1])
        for chunk, time_s in zip(chunks, times_s, strict=True):
            *lines, rest = (rest + chunk).split(b"\n")
            # a chunk of HTTP holds whole events of one or more lines; the lengths between them are no "data:"
            for line in lines:
                if line.startswith(b"data: {"):
                    _take(json.loads(line[6:]), time_s, answer)
    except (ValueError, IndexError):
        answer.status = 0
    return answer


def _take(event: dict[str, Any], time_s: float, answer: Answered) -> None:
    if "error" in event:
        answer.status = 0
    elif event["choices"]:
        delta = event["choices"][0]["delta"]
        if delta.get("content") or "nanochat" in delta:
            answer.event_s.append(time_s)
    elif event.get("usage"):
        answer.num_tokens = event["usage"]["completion_tokens"]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p90 and p99; None where there are no values."""
    names = ("p50", "p90", "p99")
    if not values:
        return dict.fromkeys(names)
    return {name: round(float(np.percentile(values, int(name[1:]))), 3) for name in names}

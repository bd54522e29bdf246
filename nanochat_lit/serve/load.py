"""Many clients at once, and what they have to wait: the measuring side of `bench serve`.

HTTP is written by hand over asyncio: general clients take as long for a chunk as a small model for a token, on the same cores.
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
            "first_token_ms": _percentiles(first),
            "inter_token_ms": _percentiles(per_token),
            "gap_ms": _percentiles(gaps),
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
        for body in waiting:  # shared: whoever is free takes the next
            answers.append(await _ask(url, body, api_key))  # noqa: PERF401 (each when it is there)

    start_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return LoadResult(concurrency, answers, time.perf_counter() - start_s)


async def _ask(url: str, body: dict[str, Any], api_key: str | None) -> Answered:
    parts = urlsplit(url)
    text = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\nContent-Length: {len(text)}\r\n"
    if api_key is not None:
        head += f"Authorization: Bearer {api_key}\r\n"
    answer = Answered(start_s=time.perf_counter())
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        try:
            writer.write(head.encode() + b"\r\n" + text)
            answer.status = int((await reader.readline()).split()[1])
            # a chunk of HTTP holds whole events of one or more lines; the lengths between them are no "data:"
            async for line in reader:
                _take(line, answer)
        finally:
            writer.close()
    except (OSError, ValueError, IndexError):
        answer.status = 0
    return answer


def _take(line: bytes, answer: Answered) -> None:
    if not line.startswith(b"data: {"):
        return
    event = json.loads(line[6:])
    if "error" in event:
        answer.status = 0
    elif event["choices"]:
        delta = event["choices"][0]["delta"]
        if delta.get("content") or "nanochat" in delta:
            answer.event_s.append(time.perf_counter())
    elif event.get("usage"):
        answer.num_tokens = event["usage"]["completion_tokens"]


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    names = ("p50", "p90", "p99")
    if not values:
        return dict.fromkeys(names)
    return {name: round(float(np.percentile(values, int(name[1:]))), 3) for name in names}

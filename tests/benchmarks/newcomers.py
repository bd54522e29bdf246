"""What one more client has to wait for its first token while all other slots of a server are busy."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_load import Answered, Connection, percentiles

from nanochat_lit.common.errors import UserError

START_TIMEOUT_S = 60.0
"""Longest time until all long answers run."""


@dataclass
class Newcomers:
    """The same requests, one after another: alone first, then beside streams that keep slots busy."""

    busy_slots: int
    idle: list[Answered] = field(default_factory=list)
    busy: list[Answered] = field(default_factory=list)
    streams: list[Answered] = field(default_factory=list)
    """The long answers that ended meanwhile."""

    def row(self) -> dict[str, Any]:
        """Figures in plain JSON; times in milliseconds."""
        idle, busy = ([a for a in some if a.status == 200 and a.event_s] for some in (self.idle, self.busy))
        idle_ms, busy_ms = (percentiles([1e3 * (a.event_s[0] - a.start_s) for a in some]) for some in (idle, busy))
        before, after = idle_ms["p50"], busy_ms["p50"]
        return {
            "busy_slots": self.busy_slots,
            "requests": len(self.busy),
            "errors": len(self.idle) + len(self.busy) - len(idle) - len(busy),
            "idle_first_token_ms": idle_ms,
            "busy_first_token_ms": busy_ms,
            "ratio": after / before if before and after else None,
            "streams_ended": len(self.streams),
        }


async def run_newcomers(
    url: str, streams: Sequence[dict[str, Any]], bodies: Sequence[dict[str, Any]], api_key: str | None
) -> Newcomers:
    """Ask `bodies` one at a time: first of an idle server, then each when all of `streams` are being answered.

    A stream that ends is asked again at once, and the next newcomer waits until its answer, too, has begun: so exactly
    `len(streams)` slots are busy whenever one comes.

    Args:
        url: Of the server, without a path.
        streams: Bodies of long answers, one for each slot that shall be busy.
        bodies: Of the newcomers.
        api_key: The server's.

    Raises:
        UserError: If the server refuses a stream, or does not answer all of them at once.
    """
    result = Newcomers(len(streams))
    newcomer, *others = [Connection(url, api_key) for _ in range(len(streams) + 1)]
    result.idle = [await newcomer.ask(body) for body in bodies]

    async def keep_busy(connection: Connection, body: dict[str, Any]) -> None:
        while True:
            answer = await connection.ask(body)
            if answer.status != 200:
                raise UserError(f"a long answer ended with status {answer.status}; give the server more slots or time")
            result.streams.append(answer)

    tasks = [asyncio.ensure_future(keep_busy(*pair)) for pair in zip(others, streams, strict=True)]
    try:
        for body in bodies:
            await asyncio.wait_for(_all_answered(others, tasks), START_TIMEOUT_S)
            result.busy.append(await newcomer.ask(body))
    except asyncio.TimeoutError:  # not the builtin before Python 3.11
        raise UserError(f"{len(others)} long answers never ran at once; give the server more slots") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in (newcomer, *others):
            connection.close()
    return result


async def _all_answered(connections: Sequence[Connection], tasks: Sequence["asyncio.Future[None]"]) -> None:
    while not all(connection.is_answered for connection in connections):
        for task in tasks:
            if task.done():
                task.result()  # what went wrong
        await asyncio.sleep(0.002)

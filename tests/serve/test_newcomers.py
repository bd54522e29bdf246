"""Newcomers come when every stream is being answered, and not before."""

import asyncio

import newcomers
import pytest
from newcomers import Newcomers, run_newcomers
from serve_load import Answered

from nanochat_lit.common.errors import UserError

HELLO = [{"role": "user", "content": "hello"}]


def body(max_tokens, seed):
    return {"messages": HELLO, "max_tokens": max_tokens, "temperature": 1.0, "seed": seed}


def test_three_of_four_slots_are_busy_when_one_comes(server, monkeypatch):
    """By the server's own count of slots, just before each newcomer. The fixture has 4 slots and a key."""
    seen = []
    wait = newcomers._all_answered

    async def watched(connections, tasks):
        await wait(connections, tasks)
        seen.append(await asyncio.to_thread(server.metric, "nanochat_slots_active"))
        await wait(connections, tasks)

    monkeypatch.setattr(newcomers, "_all_answered", watched)
    streams, asked = [body(400, seed) for seed in range(3)], [body(2, seed) for seed in range(5)]
    result = asyncio.run(run_newcomers(server.url, streams, asked, "secret"))
    row = result.row()
    assert (row["busy_slots"], row["requests"], row["errors"]) == (3, 5, 0)
    assert len(result.idle) == 5
    assert max(seen) == 3
    assert seen.count(3) >= 3  # a stream may end just when they are counted
    server.wait(server.is_idle)  # the streams were left


def test_the_ratio_is_of_medians():
    def answers(*milliseconds):
        return [Answered(200, 2, 1.0, [1.0 + ms / 1e3, 2.0]) for ms in milliseconds]

    row = Newcomers(15, idle=answers(4, 5, 60), busy=[*answers(10, 12, 13), Answered(429)]).row()
    assert row["ratio"] == pytest.approx(12 / 5)
    assert row["errors"] == 1
    assert row["busy_first_token_ms"]["p50"] == pytest.approx(12)
    assert Newcomers(15, idle=answers(4)).row()["ratio"] is None


def test_a_server_without_room_is_told(server, monkeypatch):
    """Five streams for four slots never run at once."""
    monkeypatch.setattr(newcomers, "START_TIMEOUT_S", 0.5)
    streams = [body(400, seed) for seed in range(5)]
    with pytest.raises(UserError, match="5 long answers never ran at once"):
        asyncio.run(run_newcomers(server.url, streams, [body(2, 0)], "secret"))
    server.wait(server.is_idle)

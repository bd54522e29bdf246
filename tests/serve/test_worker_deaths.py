"""A worker that dies at any moment of a request: its client gets 503 or an error event, never 500 and never half an answer."""

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("litserve", reason="needs pip install '.[serve]'")

import httpx

from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve import workers
from nanochat_lit.serve.api import ServeSettings
from nanochat_lit.serve.messages import Ready, Report, Submit, Update
from nanochat_lit.serve.server import ChatServer

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


class ScriptedProcess:
    """A worker whose every message, and whose death, a test decides."""

    def __init__(self, args: tuple[Any, ...], **_: Any) -> None:
        self.connection = Connection(os.dup(args[3].fileno()))
        self.exitcode: int | None = None

    def start(self) -> None:
        pass

    def is_loaded(self) -> None:
        self.connection.send(Ready(4, 512, SamplingParams(), "kernel"))

    def kill(self) -> None:
        self.connection.close()
        self.exitcode = -9

    def join(self) -> None:
        pass

    def is_alive(self) -> bool:
        return False  # nothing to wait for at the end

    async def submitted(self) -> int:
        """The key of the next request."""
        message = await asyncio.to_thread(self.connection.recv)
        assert isinstance(message, Submit)
        return message.key

    def report(self, key: int, text: str, finish_reason: str | None = None) -> None:
        self.connection.send(Report(0, 1, [Update(key, [("text", text)], 1, finish_reason, None)]))


@pytest.fixture
def play(make_export, monkeypatch) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], None]:
    """Run a coroutine of (processes, ask) in the loop that the server uses, uvloop where there is one."""
    processes: list[ScriptedProcess] = []

    def process(args: tuple[Any, ...], **options: Any) -> ScriptedProcess:
        processes.append(ScriptedProcess(args, **options))
        return processes[-1]

    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda _: SimpleNamespace(Process=process))
    server = ChatServer(ServeSettings(model=str(make_export()), name="tiny"), [None])

    async def main(scene: Callable[..., Coroutine[Any, Any, None]]) -> None:
        transport = httpx.ASGITransport(app=server.app, raise_app_exceptions=False)
        async with (
            server.lifespan(server.app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):

            async def ask(stream: bool = False, after: int = 0) -> httpx.Response:
                for _ in range(after):
                    await asyncio.sleep(0)
                return await client.post("/v1/chat/completions", json={**HELLO, "stream": stream})

            for number in (1, 2):  # the second replaces the first, which the scene kills
                processes[-1].is_loaded()
                while server.pool.num_ready == 0:
                    await asyncio.sleep(0)
                if number == 1:
                    await asyncio.wait_for(scene(processes, ask), 30)
            answer = asyncio.ensure_future(ask())
            processes[-1].report(await processes[-1].submitted(), "fine", "stop")
            assert (await answer).json()["choices"][0]["message"]["content"] == "fine"
            assert server.metrics.in_flight.values[()] == 0

    def run(scene: Callable[..., Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(ImportError):
            import uvloop

            uvloop.run(main(scene))
            return
        asyncio.run(main(scene))

    return run


def told(response: httpx.Response) -> str:
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"] in ("unavailable", "not_ready")
    return response.json()["error"]["message"]


def test_death_that_the_server_has_not_noticed(play):
    """Requests in every turn of the loop around it: in one of them uvloop's write raises RuntimeError."""

    async def scene(processes, ask):
        answers = asyncio.gather(*[ask(stream=n % 2 == 1, after=n) for n in range(60)])
        while not processes[0].connection.poll():
            await asyncio.sleep(0)
        processes[0].kill()
        assert len({told(response) for response in await answers}) == 2  # asked before, asked after

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half", [b"", b"\0\0", struct.pack("!i", 900) + b"half of a message"])
def test_death_before_the_first_token(play, stream, half):
    async def scene(processes, ask):
        answer = asyncio.ensure_future(ask(stream))
        await processes[0].submitted()
        os.write(processes[0].connection.fileno(), half)
        processes[0].kill()
        assert "died" in told(await answer)

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_death_in_the_middle_of_an_answer(play, stream):
    async def scene(processes, ask):
        answer = asyncio.ensure_future(ask(stream))
        processes[0].report(await processes[0].submitted(), "half an ")
        processes[0].kill()
        response = await answer
        if not stream:
            assert "died" in told(response)
            return
        assert response.status_code == 200
        *_, last = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data:")]
        assert "died" in last["error"]["message"]

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_death_right_after_an_answer(play, stream):
    """What was sent before it is not lost."""

    async def scene(processes, ask):
        answer = asyncio.ensure_future(ask(stream))
        processes[0].report(await processes[0].submitted(), "whole", "stop")
        processes[0].kill()
        response = await answer
        assert response.status_code == 200
        assert "whole" in response.text
        assert "error" not in response.text
        assert not stream or response.text.endswith("data: [DONE]\n\n")

    play(scene)

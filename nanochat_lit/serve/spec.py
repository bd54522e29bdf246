"""The endpoints of OpenAI's interface: chat completions and models."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec

from nanochat_lit.serve.api import ServeSettings
from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.serve.chat_request import ChatRequest, parse_chat_request, parse_json, render_prompt
from nanochat_lit.serve.chat_response import AnswerParts, ChunkWriter, completion, event, usage
from nanochat_lit.serve.messages import Update
from nanochat_lit.serve.metrics import ServerMetrics
from nanochat_lit.serve.workers import HANG_S, WorkerPool
from nanochat_lit.tokenizer import Tokenizer

BODY_TIMEOUT_S = 30.0
"""Longest time for a request's body to arrive."""


class ChatSpec(LitSpec):
    """Reads requests, has them answered by the pool, writes answers.

    Not a subclass of LitServe's OpenAISpec: its models drop seeds, refuse with errors in another shape, sum usage over chunks,
    and never stop what a client has left.

    Args:
        settings: Of the server.
        tokenizer: The model's.
        pool: The workers.
        metrics: Where to count.
    """

    def __init__(self, settings: ServeSettings, tokenizer: Tokenizer, pool: WorkerPool, metrics: ServerMetrics) -> None:
        super().__init__()
        self.api_path = "/v1/chat/completions"
        self._settings, self._tokenizer, self._pool, self._metrics = settings, tokenizer, pool, metrics
        self._created = int(time.time())

    @property
    def stream(self) -> Any:  # LitServe declares False
        """Whether answers can come in parts."""
        return True

    def pre_setup(self, lit_api: Any) -> None:  # noqa: ARG002 - LitServe's signature
        """LitServe's moment for naming endpoints."""
        self.add_endpoint(self.api_path, self.chat_completions, ["POST"])
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint("/v1/models/{name}", self.model, ["GET"])

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:  # noqa: ARG002 - LitServe's signature
        """Not used: requests are read by the endpoint."""
        return request

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:  # noqa: ARG002 - LitServe's signature
        """Not used: answers are written by the endpoint."""
        return output

    async def models(self) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        """GET /v1/models/NAME."""
        if name != self._settings.name:
            message = f"the model {name!a} does not exist; this server has {self._settings.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(self._model())

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        start_s = time.monotonic()
        try:
            raw = await asyncio.wait_for(request.body(), BODY_TIMEOUT_S)
        except asyncio.TimeoutError:  # not the builtin before Python 3.11
            raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        ready = self._pool.ready
        if ready is None:
            raise ApiError(503, "the model is being loaded; try again in a moment", code="not_ready", retry_after_s=2)
        chat = parse_chat_request(parse_json(raw), self._settings.name, ready.defaults)
        prompt = render_prompt(chat, self._tokenizer, ready.context)
        client = f"{request.client.host if request.client else ''} {chat.user}"
        updates = self._count(self._pool.updates(_engine_fields(chat, prompt), client), start_s)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self._settings.name}
        # until the first token it is one thing, so that an error has its own status in a streamed answer, too
        first = await _unless_left(_next(updates), request)
        if first is None:
            return Response(status_code=499)  # read by nobody
        self._metrics.prompt_tokens.add(by=len(prompt))
        if chat.stream:
            events = _stream(updates, first, ChunkWriter(head, chat.include_usage), len(prompt))
            return _BoundedStream(events, self._settings.request_timeout_s + 2 * HANG_S)
        answer = await _unless_left(_collect(updates, first), request)
        if answer is None:
            return Response(status_code=499)
        return JSONResponse(completion(head, answer, len(prompt)))

    async def _count(self, updates: AsyncIterator[Update], start_s: float) -> AsyncIterator[Update]:
        """The same updates, measured; closes them when it is closed."""
        metrics = self._metrics
        before_s, is_over = 0.0, False
        metrics.in_flight.add()
        try:
            async with contextlib.aclosing(updates):  # type: ignore[type-var]
                async for update in updates:
                    now_s = time.monotonic()
                    if before_s == 0.0:
                        metrics.first_token.observe(now_s - start_s)
                    elif update.num_tokens:
                        metrics.between_tokens.observe((now_s - before_s) / update.num_tokens, update.num_tokens)
                    before_s = now_s
                    metrics.completion_tokens.add(by=update.num_tokens)
                    is_over = update.finish_reason is not None
                    if is_over:
                        metrics.request.observe(now_s - start_s)
                    yield update
        except ApiError:
            is_over = True
            raise
        finally:
            metrics.in_flight.add(by=-1)
            if not is_over:
                metrics.disconnects.add()

    def _model(self) -> dict[str, Any]:
        name, created = self._settings.name, self._created
        return {"id": name, "object": "model", "created": created, "owned_by": "nanochat-lit"}


class _BoundedStream(StreamingResponse):
    """Server-sent events to a client that has to read them in time: one that stops reading does not hold its connection."""

    def __init__(self, events: AsyncIterator[str], timeout_s: float) -> None:
        # nginx and its like would collect the events
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._events, self._timeout_s = events, timeout_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(super().__call__(scope, receive, send), self._timeout_s)
        finally:  # also when the client has left: now, not when the garbage is collected
            await self._events.aclose()  # type: ignore[attr-defined]


def _engine_fields(chat: ChatRequest, prompt: list[int]) -> dict[str, Any]:
    return {
        "prompt_ids": prompt,
        "max_new_tokens": chat.max_new_tokens,
        "temperature": chat.temperature,
        "top_k": chat.top_k,
        "top_p": chat.top_p,
        "seed": secrets.randbits(31) if chat.seed is None else chat.seed,
        "stop": chat.stop,
    }


async def _next(updates: AsyncIterator[Update]) -> Update:
    return await updates.__anext__()


async def _collect(updates: AsyncIterator[Update], first: Update) -> AnswerParts:
    answer = AnswerParts()
    async for update in _chain(first, updates):
        answer.add(update.parts)
        answer.num_tokens += update.num_tokens
        answer.finish_reason = update.finish_reason
    return answer


async def _stream(
    updates: AsyncIterator[Update], first: Update, writer: ChunkWriter, num_prompt: int
) -> AsyncIterator[str]:
    num_tokens = 0
    text = writer.start()
    try:
        async for update in _chain(first, updates):
            num_tokens += update.num_tokens
            text += writer.parts(update.parts)
            if update.finish_reason is not None:
                text += writer.end(update.finish_reason, usage(num_prompt, num_tokens))
            if text:
                yield text
            text = ""
    except ApiError as error:  # too late for a status; OpenAI's clients raise what such an event says
        yield event(error.body)


async def _chain(first: Update, updates: AsyncIterator[Update]) -> AsyncIterator[Update]:
    try:
        yield first
        async for update in updates:
            yield update
    finally:
        await updates.aclose()  # type: ignore[attr-defined]


async def _unless_left(work: Any, request: Request) -> Any:
    """The work's result, or None if the client leaves before; the work is cancelled then, and its request with it."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_left(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""Endpoints of the OpenAI-compatible API: chat completions and models."""

import asyncio
import contextlib
import secrets
import time
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from litserve.specs.base import LitSpec
from starlette.requests import ClientDisconnect

from nanochat_lit.engine.sampling_params import Request as EngineRequest
from nanochat_lit.serve.api import ServeSettings
from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.serve.chat_request import parse_chat_request, parse_json, render_prompt
from nanochat_lit.serve.chat_response import AnswerParts, ChunkWriter, TokenNames, completion, event, usage
from nanochat_lit.serve.gate import BODY_TIMEOUT_S
from nanochat_lit.serve.messages import Update
from nanochat_lit.serve.metrics import ServerMetrics
from nanochat_lit.serve.reply import ClientLeft, Reply
from nanochat_lit.serve.workers import WorkerPool
from nanochat_lit.tokenizer import Tokenizer


class ChatSpec(LitSpec):
    """Reads requests, submits them to the pool, writes answers.

    Not a subclass of LitServe's OpenAISpec, which drops seeds, returns errors in another format, sums usage over
    chunks, and does not stop requests of disconnected clients.

    Args:
        settings: Settings of the server.
        tokenizer: Tokenizer of the model.
        pool: Worker pool.
        metrics: Metrics to update.
    """

    def __init__(self, settings: ServeSettings, tokenizer: Tokenizer, pool: WorkerPool, metrics: ServerMetrics) -> None:
        super().__init__()
        self.api_path = "/v1/chat/completions"
        self._settings, self._tokenizer, self._pool, self._metrics = settings, tokenizer, pool, metrics
        self._created = int(time.time())

    @property
    def stream(self) -> Any:  # LitServe declares False
        """Whether answers can be streamed."""
        return True

    def pre_setup(self, lit_api: Any) -> None:  # noqa: ARG002 - LitServe's signature
        """Register the endpoints."""
        self.add_endpoint(self.api_path, self.chat_completions, ["POST"])
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint("/v1/models/{name:path}", self.model, ["GET"])  # names may contain slashes

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:  # noqa: ARG002 - LitServe's signature
        """Unused: the endpoint reads requests."""
        return request

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:  # noqa: ARG002 - LitServe's signature
        """Unused: the endpoint writes answers."""
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
        except ClientDisconnect:
            return Response(status_code=499)  # the client disconnected
        except asyncio.TimeoutError:  # not the builtin before Python 3.11
            raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        ready = self._pool.ready
        if ready is None:
            raise ApiError(503, "the model is loading; try again in a few seconds", code="not_ready", retry_after_s=2)
        chat = parse_chat_request(parse_json(raw), self._settings.name, ready.defaults)
        prompt = render_prompt(chat, self._tokenizer, ready.context)
        client = f"{request.client.host if request.client else ''} {chat.user}"
        scores = {"logprobs": chat.logprobs, "top_logprobs": chat.top_logprobs}
        engine_request = EngineRequest(prompt_ids=prompt, **scores, **vars(chat.sampling))
        names = TokenNames(self._tokenizer) if chat.logprobs else None
        reply = self._pool.ask(engine_request, client, start_s)
        watcher = asyncio.ensure_future(_leave_with_client(reply, request))
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self._settings.name}
        is_streaming = False
        try:
            # wait for the first token, so that an earlier error has its own status in a streamed answer too
            first = await reply.next()
            self._metrics.prompt_tokens.add(by=len(prompt))
            if chat.stream:
                is_streaming = True
                answer = _Stream(reply, first, ChunkWriter(head, chat.include_usage, names), len(prompt))
                return _EventResponse(
                    answer, watcher, self._settings.request_timeout_s + 2 * self._settings.hang_timeout_s
                )
            return JSONResponse(completion(head, await _whole(reply, first), len(prompt), names))
        except ClientLeft:
            return Response(status_code=499)  # the client disconnected
        finally:
            if not is_streaming:
                watcher.cancel()
                reply.close()

    def _model(self) -> dict[str, Any]:
        name, created = self._settings.name, self._created
        return {"id": name, "object": "model", "created": created, "owned_by": "nanochat-lit"}


class _EventResponse(Response):
    """Server-sent events with a write timeout, so that a client that stops reading is disconnected.

    Starlette's implementation starts a task group per answer and sends an empty message at its end.
    """

    def __init__(self, stream: "_Stream", watcher: asyncio.Task[None], timeout_s: float) -> None:
        # prevents nginx and similar proxies from buffering the events
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(media_type="text/event-stream", headers=headers)
        del self.headers["content-length"]
        self._stream, self._watcher, self._timeout_s = stream, watcher, timeout_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002 - ASGI's signature
        try:
            with contextlib.suppress(asyncio.TimeoutError, ClientLeft):
                await asyncio.wait_for(self._send(send), self._timeout_s)
        finally:
            self._watcher.cancel()
            self._stream.reply.close()

    async def _send(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        is_over = False
        while not is_over:
            text, is_over = await self._stream.next()
            await send({"type": "http.response.body", "body": text.encode(), "more_body": not is_over})


class _Stream:
    """An answer as server-sent events."""

    def __init__(self, reply: Reply, first: Update, writer: ChunkWriter, num_prompt: int) -> None:
        self.reply = reply
        self._first: Update | None = first
        self._writer, self._num_prompt, self._num_tokens = writer, num_prompt, 0

    async def next(self) -> tuple[str, bool]:
        """Return the available events, and whether they are the last."""
        if self._first is not None:
            update, text, self._first = self._first, self._writer.start(), None
        else:
            try:
                update, text = await self.reply.next(), ""
            except ApiError as error:  # too late for an HTTP status; OpenAI's clients raise the error of such an event
                return event(error.body), True
        self._num_tokens += update.num_tokens
        text += self._writer.scores(update.scores) + self._writer.parts(update.parts)
        if update.finish_reason is None:
            return text, False
        return text + self._writer.end(update.finish_reason, usage(self._num_prompt, self._num_tokens)), True


async def _whole(reply: Reply, first: Update) -> AnswerParts:
    answer, update = AnswerParts(), first
    while True:
        answer.add(update)
        if update.finish_reason is not None:
            return answer
        update = await reply.next()


async def _leave_with_client(reply: Reply, request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    reply.leave()

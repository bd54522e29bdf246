"""Endpoints of the OpenAI-compatible API: chat completions, completions, models; and vLLM's for tokens."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from litserve.specs.base import LitSpec

from nanochat_lit.engine.sampling_params import Request as EngineRequest
from nanochat_lit.serve.api import ServeSettings
from nanochat_lit.serve.chat_request import parse_chat_request, render_prompt
from nanochat_lit.serve.chat_response import ChatWriter, TokenNames, Writer, event, usage
from nanochat_lit.serve.completions import TextWriter, detokenize, parse_completion_request, tokenize
from nanochat_lit.serve.gate import BODY_TIMEOUT_S
from nanochat_lit.serve.messages import Ready, Update, merged
from nanochat_lit.serve.metrics import ServerMetrics
from nanochat_lit.serve.request_fields import ApiError, Options, parse_json
from nanochat_lit.serve.responses import ResponseWriter, own_names, parse_response_request
from nanochat_lit.serve.workers import ClientLeft, Reply, WorkerPool
from nanochat_lit.tokenizer import Tokenizer

Updates = Sequence[tuple[int, Update]]
"""New results, with the index of the answer."""


class ChatSpec(LitSpec):
    """Reads requests, submits them to the pool, writes answers.

    Not a subclass of LitServe's OpenAISpec, which drops seeds, returns errors in another format, sums usage over
    chunks, and does not stop requests of disconnected clients.
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
        self.add_endpoint("/v1/completions", self.completions, ["POST"])
        self.add_endpoint("/v1/responses", self.responses, ["POST"])
        self.add_endpoint("/tokenize", self.tokenize, ["POST"])
        self.add_endpoint("/detokenize", self.detokenize, ["POST"])
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
        start_s, body, ready = time.monotonic(), *await self._read(request)
        chat = parse_chat_request(body, self._settings.name, ready.defaults)
        prompt = render_prompt(chat, self._tokenizer, ready.context)
        head = self._head("chatcmpl")
        names = TokenNames(self._tokenizer) if chat.logprobs else None
        writers = [ChatWriter(head, index, chat.include_usage, names, chat.tools) for index in range(chat.n)]
        return await self._answer(request, chat, chat.requests(prompt), writers, start_s)

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        start_s, body, ready = time.monotonic(), *await self._read(request)
        chat = parse_response_request(body, self._settings.name, ready.defaults)
        with own_names():
            prompt = render_prompt(chat, self._tokenizer, ready.context)
        writer = ResponseWriter(self._head("resp"), tools=chat.tools, body=body)
        return await self._answer(request, chat, chat.requests(prompt), [writer], start_s)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        start_s, body, ready = time.monotonic(), *await self._read(request)
        asked = parse_completion_request(body, self._settings.name, ready.defaults, self._tokenizer, ready.context)
        head = self._head("cmpl")
        names = TokenNames(self._tokenizer) if asked.logprobs else None
        requests: list[EngineRequest] = []
        writers: list[Writer] = []
        for text, prompt in zip(asked.texts, asked.prompts, strict=True):
            echo = (text, prompt) if asked.echo else None
            for one in asked.requests(prompt, prompt_logprobs=asked.echo and asked.logprobs):
                writers.append(
                    TextWriter(
                        head, len(writers), asked.include_usage, names, echo, is_prompt_only=asked.is_prompt_only
                    )
                )
                requests.append(one)
        return await self._answer(request, asked, requests, writers, start_s)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize, as vLLM's."""
        body, ready = await self._read(request)
        return JSONResponse(tokenize(body, self._settings.name, self._tokenizer, ready.context))

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize, as vLLM's."""
        body, _ = await self._read(request)
        return JSONResponse(detokenize(body, self._settings.name, self._tokenizer))

    async def _read(self, request: Request) -> tuple[dict[str, Any], Ready]:
        """Return the body of a request, and what is known of the model."""
        try:
            raw = await asyncio.wait_for(request.body(), BODY_TIMEOUT_S)
        except asyncio.TimeoutError:  # not the builtin before Python 3.11
            raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        ready = self._pool.ready
        if ready is None:
            raise ApiError(503, "the model is loading; try again in a few seconds", code="not_ready", retry_after_s=2)
        return parse_json(raw), ready

    async def _answer(
        self,
        request: Request,
        asked: Options,
        requests: Sequence[EngineRequest],
        writers: Sequence[Writer],
        start_s: float,
    ) -> Response:
        client = f"{request.client.host if request.client else ''} {asked.user}"
        num_prompt = sum(len(one.prompt_ids) for one in requests if one.sample == 0)
        reply = self._pool.ask(requests, client, start_s)
        reply.follow(request)
        is_streaming = False
        try:
            # wait for the first token, so that an earlier error has its own status in a streamed answer too
            first = await reply.next()
            self._metrics.prompt_tokens.add(by=num_prompt)
            if asked.stream:
                is_streaming = True
                events = _events(reply, first, writers, num_prompt, asked.include_usage)
                timeout_s = self._settings.request_timeout_s + 2 * self._settings.hang_timeout_s
                return _EventResponse(events, reply, timeout_s)
            return JSONResponse(await _whole(reply, first, writers, num_prompt))
        finally:
            if not is_streaming:
                reply.close()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": self._settings.name}

    def _model(self) -> dict[str, Any]:
        name, created = self._settings.name, self._created
        model = {"id": name, "object": "model", "created": created, "owned_by": "nanochat-lit"}
        return model | ({"description": self._pool.ready.about} if self._pool.ready else {})


class _EventResponse(Response):
    """Server-sent events with a write timeout, so that a client that stops reading is disconnected.

    Starlette's implementation starts a task group per answer and sends an empty message at its end.
    """

    def __init__(self, events: AsyncIterator[tuple[str, bool]], reply: Reply, timeout_s: float) -> None:
        # prevents nginx and similar proxies from buffering the events
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(media_type="text/event-stream", headers=headers)
        del self.headers["content-length"]
        self._events, self._reply, self._timeout_s = events, reply, timeout_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002 - ASGI's signature
        try:
            with contextlib.suppress(asyncio.TimeoutError, ClientLeft):
                await asyncio.wait_for(self._send(send), self._timeout_s)
        finally:
            self._reply.close()

    async def _send(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for text, is_last in self._events:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": not is_last})


async def _events(
    reply: Reply, updates: Updates, writers: Sequence[Writer], num_prompt: int, include_usage: bool
) -> AsyncIterator[tuple[str, bool]]:
    """Yield the available events, and whether they are the last."""
    text, num_tokens = "".join(writer.start() for writer in writers), 0
    while True:
        for index, update in updates:
            num_tokens += update.num_tokens
            text += writers[index].events(update)
        if reply.is_over:
            yield text + writers[0].end(usage(num_prompt, num_tokens) if include_usage else None), True
            return
        yield text, False
        try:
            updates, text = await reply.next(), ""
        except ApiError as error:  # too late for an HTTP status; OpenAI's clients raise the error of such an event
            yield event(error.body), True
            return


async def _whole(reply: Reply, updates: Updates, writers: Sequence[Writer], num_prompt: int) -> dict[str, Any]:
    received: list[list[Update]] = [[] for _ in writers]
    while True:
        for index, update in updates:
            received[index].append(update)
        if reply.is_over:
            answers = [merged(parts) for parts in received]
            choices = [writer.choice(answer) for writer, answer in zip(writers, answers, strict=True)]
            return writers[0].whole(choices, usage(num_prompt, sum(answer.num_tokens for answer in answers)))
        updates = await reply.next()

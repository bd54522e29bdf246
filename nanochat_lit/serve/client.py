"""A `ChatModel` elsewhere: a client of `nanochat-lit serve`, or of any server that speaks OpenAI's chat completions.

Standard library only. What goes beyond that interface, for the calculator's use: a chunk's delta may hold `nanochat`, a piece
{"type": "python" | "python_output", "text": ...}, and an earlier answer that used it is sent back with `nanochat`, its
{"parts": [...]}. Also `top_k` in the request.
"""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_model import Answer, Message
from nanochat_lit.engine.sampling_params import SamplingParams

TIMEOUT_S = 120.0
"""Longest silence of the server."""

_MAX_ERROR_BYTES = 65_536


class ServerChat:
    """Answers come from a server. Between two answers nothing is kept open.

    Args:
        url: Of the server, as in http://127.0.0.1:8000; a path before /v1 is kept. No proxy of the environment is used.
        api_key: What the server was started with; None if it asks for none.

    Raises:
        UserError: If the address is not valid, or no server answers there.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url} is not the address of a server; use one such as http://127.0.0.1:8000")
        self._url = url
        self._host, self._port = parts.hostname, _port(url, parts)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.name = self._first_model()
        """What the server calls its model."""
        # A server tells neither its context nor how it counts; both show in what it tells of its answers.
        self._context: int | None = None
        self._tokens_per_char = 0.0

    def answer(self, messages: Sequence[Message], settings: SamplingParams) -> Answer:
        """Begin an answer; see `ChatModel`.

        Oldest turns are left out while the server says that it is too long. A server may also take what leaves no room for
        an answer; once one was cut for that reason the context is known, and later conversations leave a quarter of it.

        Raises:
            UserError: What the server says, or that it cannot be reached.
        """
        has_system = messages[0]["role"] == "system"
        turns = list(messages[has_system:])
        num_dropped = 0
        while True:
            sent = [_plain(message) for message in [*messages[:has_system], *turns]]
            num_chars = len(json.dumps(sent, ensure_ascii=False))
            is_too_long = self._context is not None and num_chars * self._tokens_per_char > 0.75 * self._context
            if not is_too_long or len(turns) < 3:
                connection, response = self._request("POST", "/chat/completions", self._body(sent, settings))
                if response.status == 200:
                    return self._answer(connection, response, num_dropped, num_chars, settings.max_new_tokens)
                message, code = _error_of(response)
                connection.close()
                if code != "context_length_exceeded" or len(turns) < 3:
                    raise UserError(f"{self._url} says: {message}")
            del turns[:2]
            num_dropped += 1

    def _body(self, messages: Sequence[dict[str, Any]], settings: SamplingParams) -> bytes:
        request = {
            "model": self.name,
            "messages": messages,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "max_tokens": settings.max_new_tokens,
            "seed": settings.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(request).encode()

    def _answer(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        num_dropped: int,
        num_chars: int,
        max_new_tokens: int,
    ) -> Answer:
        started_s = time.perf_counter()
        wanted = connection.sock  # http.client forgets it when the response has been read
        has_stopped = False

        def stop() -> None:
            nonlocal has_stopped
            has_stopped = True
            if wanted is not None:
                with contextlib.suppress(OSError):  # it has ended by itself
                    wanted.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; closing would not

        def pieces() -> Generator[Piece, None, None]:
            try:
                for chunk in _events(response):
                    answer.elapsed_s = time.perf_counter() - started_s
                    yield from _take(chunk, answer)
                    if usage := chunk.get("usage"):
                        self._learn(usage, answer, num_chars, max_new_tokens)
                    if has_stopped:
                        return
                if not has_stopped and answer.finish_reason is None:
                    raise UserError(f"{self._url} broke off in the middle of the answer")
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                if not has_stopped:
                    raise UserError(f"{self._url} broke off in the middle of the answer ({error})") from None
            finally:
                response.close()
                connection.close()

        answer = Answer(num_dropped_turns=num_dropped, stop=stop)
        answer.num_tokens = None  # known when the server tells its usage
        answer.pieces = pieces()
        return answer

    def _learn(self, usage: dict[str, Any], answer: Answer, num_chars: int, max_new_tokens: int) -> None:
        self._tokens_per_char = usage["prompt_tokens"] / num_chars
        if answer.finish_reason == "length" and usage["completion_tokens"] < max_new_tokens:
            self._context = usage["prompt_tokens"] + usage["completion_tokens"]

    def _first_model(self) -> str:
        connection, response = self._request("GET", "/models")
        try:
            if response.status != 200:
                raise UserError(f"{self._url} says: {_error_of(response)[0]}")
            return str(json.loads(response.read(_MAX_ERROR_BYTES))["data"][0]["id"])
        except (OSError, http.client.HTTPException, json.JSONDecodeError, LookupError, TypeError):
            raise UserError(f"{self._url} is not a server of chat completions: it names no model") from None
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, self._path + path, body, self._headers)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UserError(f"no server answers at {self._url} ({error}); start one with nanochat-lit serve") from None


def _port(url: str, parts: Any) -> int | None:
    try:
        return parts.port
    except ValueError:
        raise UserError(f"{url} has a port that is none; use one such as http://127.0.0.1:8000") from None


def _plain(message: Message) -> dict[str, Any]:
    """A message as the interface has it: content is text."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    plain: dict[str, Any] = {"role": message["role"]}
    plain["content"] = "".join(part["text"] for part in content if part["type"] == "text")
    if any(part["type"] != "text" for part in content):  # only a server that knows them has sent such
        plain["nanochat"] = {"parts": content}
    return plain


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, up to [DONE]."""
    for line in response:
        if not line.startswith(b"data:"):
            continue  # empty lines, and comments that keep the connection alive
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        yield json.loads(data)


def _take(chunk: dict[str, Any], answer: Answer) -> Generator[Piece, None, None]:
    """The pieces in a chunk; what else it tells goes into the answer."""
    if "error" in chunk:
        raise UserError(f"the server says: {chunk['error'].get('message')}")
    if usage := chunk.get("usage"):
        answer.num_tokens = usage["completion_tokens"]
    for choice in chunk.get("choices", [])[:1]:
        delta = choice.get("delta") or {}
        if delta.get("nanochat"):
            yield Piece(delta["nanochat"]["type"], delta["nanochat"]["text"])
        if delta.get("content"):
            yield Piece("text", delta["content"])
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


def _error_of(response: http.client.HTTPResponse) -> tuple[str, str | None]:
    """Message and code of an error in OpenAI's shape, as far as it has them."""
    try:
        error = json.loads(response.read(_MAX_ERROR_BYTES))["error"]
        return str(error["message"]), error.get("code")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
        return f"{response.status} {response.reason}", None

"""A `ChatModel` on a server: a client of `nanochat-lit serve` or any OpenAI-compatible server.

Uses only the standard library. Extensions of OpenAI's API: a delta may have `nanochat`, a part {"type": "python" |
"python_output", "text": ...} of a calculator call; an earlier answer with calls is sent back with `nanochat`, its
{"parts": [...]}; and a request may have `top_k`.
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
from nanochat_lit.engine.chat_session import Answer, Message, TokenScore
from nanochat_lit.engine.sampling_params import SamplingParams

TIMEOUT_S = 120.0
"""Timeout between data from the server, seconds."""

_MAX_ERROR_BYTES = 65_536


class ServerChat:
    """Requests answers from a server, with one connection per answer; environment proxies are ignored.

    A path before /v1 in the address, such as http://127.0.0.1:8000, is kept. Raises UserError if the address is invalid
    or the server does not respond.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url} is not a server address; use one such as http://127.0.0.1:8000")
        try:
            self._url, self._host, self._port = url, parts.hostname, parts.port
        except ValueError:
            raise UserError(f"{url} has an invalid port; use an address such as http://127.0.0.1:8000") from None
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        model = self._first_model(TIMEOUT_S)
        self.name = str(model["id"])
        """Model name on the server."""
        self.about = str(model.get("description", ""))
        """Description of the model by the server; may be empty."""
        # The server does not report its context length or tokenization; both are estimated from the usage of answers.
        self._context: int | None = None
        self._tokens_per_char = 0.0

    def answer(self, messages: Sequence[Message], settings: SamplingParams, top_logprobs: int = 0) -> Answer:
        """Start an answer; see `ChatModel`.

        Drops the oldest turns while the server reports that the context is exceeded. A server may also accept a prompt
        that leaves no space for an answer. Once an answer was truncated for that reason, the context length is known,
        and later conversations leave a quarter of it free.
        """
        has_system = messages[0]["role"] == "system"
        turns = list(messages[has_system:])
        num_dropped = 0
        while True:
            sent = [_plain(message) for message in [*messages[:has_system], *turns]]
            num_chars = len(json.dumps(sent, ensure_ascii=False))
            is_too_long = self._context is not None and num_chars * self._tokens_per_char > 0.75 * self._context
            if not is_too_long or len(turns) < 3:
                connection, response = self._request(
                    "POST", "/chat/completions", self._body(sent, settings, top_logprobs)
                )
                if response.status == 200:
                    return self._answer(connection, response, num_dropped, num_chars, settings.max_new_tokens)
                message, code = _error_of(response)
                connection.close()
                if code != "context_length_exceeded" or len(turns) < 3:
                    raise UserError(f"{self._url} reports: {message}")
            del turns[:2]
            num_dropped += 1

    def _body(self, messages: Sequence[dict[str, Any]], settings: SamplingParams, top_logprobs: int) -> bytes:
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
        if top_logprobs:
            request |= {"logprobs": True, "top_logprobs": top_logprobs}
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
        wanted = connection.sock  # http.client drops the reference once the response has been read
        has_stopped = False

        def stop() -> None:
            nonlocal has_stopped
            has_stopped = True
            if wanted is not None:
                with contextlib.suppress(OSError):  # already closed
                    wanted.shutdown(socket.SHUT_RDWR)  # wakes the reading thread, unlike close

        def pieces() -> Generator[Piece, None, None]:
            try:
                for chunk in _events(response):
                    answer.elapsed_s = time.perf_counter() - started_s
                    yield from _take(chunk, answer)
                    if usage := chunk.get("usage"):
                        self._tokens_per_char = usage["prompt_tokens"] / num_chars
                        if answer.finish_reason == "length" and usage["completion_tokens"] < max_new_tokens:
                            self._context = usage["prompt_tokens"] + usage["completion_tokens"]
                    if has_stopped:
                        return
                if not has_stopped and answer.finish_reason is None:
                    raise UserError(f"{self._url} closed the connection during the answer")
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                if isinstance(error, UserError):
                    raise
                if not has_stopped:
                    raise UserError(f"{self._url} closed the connection during the answer ({error})") from None
            finally:
                response.close()
                connection.close()

        answer = Answer(num_dropped_turns=num_dropped, stop=stop)
        answer.num_tokens = None  # known once the server reports the usage
        answer.pieces = pieces()
        return answer

    def problem(self) -> str | None:
        """Return why the server cannot answer now; None if it can."""
        try:
            self._first_model(timeout_s=3)
        except UserError as error:
            return str(error)
        return None

    def _first_model(self, timeout_s: float) -> dict[str, Any]:
        connection, response = self._request("GET", "/models", timeout_s=timeout_s)
        try:
            if response.status != 200:
                raise UserError(f"{self._url} reports: {_error_of(response)[0]}")
            model = json.loads(response.read(_MAX_ERROR_BYTES))["data"][0]
            return {**model, "id": model["id"]}
        except (OSError, http.client.HTTPException, json.JSONDecodeError, LookupError, TypeError):
            raise UserError(f"{self._url} is not a chat completions server: it does not list a model") from None
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, body: bytes | None = None, timeout_s: float = TIMEOUT_S
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._kind(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, self._path + path, body, self._headers)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UserError(f"no server responds at {self._url} ({error}); start one with nanochat-lit serve") from None


def _plain(message: Message) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    text = "".join(part["text"] for part in content if part["type"] == "text")
    plain: dict[str, Any] = {"role": message["role"], "content": text}
    if any(part["type"] != "text" for part in content):  # only servers with this extension send such parts
        plain["nanochat"] = {"parts": content}
    return plain


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event, up to [DONE]."""
    for line in response:
        if line.startswith(b"data:"):  # others are empty lines and keep-alive comments
            if (data := line.removeprefix(b"data:").strip()) == b"[DONE]":
                return
            yield json.loads(data)


def _take(chunk: dict[str, Any], answer: Answer) -> Generator[Piece, None, None]:
    """Yield the parts of a chunk; store finish reason and usage in the answer."""
    if "error" in chunk:
        raise UserError(f"the server reports: {chunk['error'].get('message')}")
    if usage := chunk.get("usage"):
        answer.num_tokens = usage["completion_tokens"]
    for choice in chunk.get("choices", [])[:1]:
        delta = choice.get("delta") or {}
        for score in (choice.get("logprobs") or {}).get("content") or ():
            top = [(str(other["token"]), float(other["logprob"])) for other in score["top_logprobs"]]
            answer.scores.append(TokenScore(str(score["token"]), float(score["logprob"]), top))
        if delta.get("nanochat"):
            yield Piece(delta["nanochat"]["type"], delta["nanochat"]["text"])
        if delta.get("content"):
            yield Piece("text", delta["content"])
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


def _error_of(response: http.client.HTTPResponse) -> tuple[str, str | None]:
    """Return message and code of an error in OpenAI's format, if present."""
    try:
        error = json.loads(response.read(_MAX_ERROR_BYTES))["error"]
        return str(error["message"]), error.get("code")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
        return f"{response.status} {response.reason}", None

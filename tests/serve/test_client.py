"""The client against a small server that writes OpenAI's chunks by hand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.client import ServerChat

SETTINGS = SamplingParams(temperature=0.3, top_k=7, top_p=0.9, max_new_tokens=33, seed=5)


def chunk(delta: dict, finish_reason: str | None = None, **more: object) -> dict:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **more}


class Server(ThreadingHTTPServer):
    """Streams `chunks` to everyone, or refuses with `refusal`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.chunks: list[dict | bytes] = []
        self.refusal: Callable[[dict], tuple[int, object] | None] = lambda body: None
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.num_streaming = 0
        self.is_endless = False


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        self._json(200, {"data": [{"id": "toy", "description": "small"}]}) if self.path == "/v1/models" else self._json(
            404, {}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if refused := self.server.refusal(body):
            return self._json(*refused)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.server.num_streaming += 1
        try:
            for item in self.server.chunks:
                self._event(item if isinstance(item, bytes) else b"data: " + json.dumps(item).encode())
            while self.server.is_endless:
                self._event(b"data: " + json.dumps(chunk({"content": " more"})).encode())
                time.sleep(0.01)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            self.server.num_streaming -= 1

    def _event(self, data: bytes) -> None:
        data += b"\n\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _json(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.is_endless = False
        server.shutdown()
        thread.join()


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_scores_and_description(server: Server) -> None:
    scores = [{"token": "It", "logprob": -0.5, "bytes": [73], "top_logprobs": [{"token": "I", "logprob": -1}]}]
    finish = chunk({}, "stop")
    server.chunks = [
        {"choices": [{"delta": {"content": ""}, "logprobs": {"content": scores}}]},
        finish,
        b"data: [DONE]",
    ]
    model = ServerChat(server.url)
    assert model.about == "small"
    answer = model.answer([user("x")], SETTINGS, 2)
    list(answer.pieces)
    assert answer.scores == [("It", -0.5, [("I", -1.0)])]
    assert (server.asked[-1]["logprobs"], server.asked[-1]["top_logprobs"]) == (True, 2)
    assert model.problem() is None
    server.chunks = [{"choices": [{"delta": {}, "logprobs": {"content": [{"token": "It"}]}}]}]
    with pytest.raises(UserError, match="closed the connection during the answer"):
        list(model.answer([user("x")], SETTINGS, 2).pieces)


def test_an_answer_and_what_was_asked(server: Server) -> None:
    server.chunks = [
        b": keep-alive",
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "It is "}),
        chunk({"nanochat": {"type": "python", "text": "12+30"}}),
        chunk({"content": "", "nanochat": {"type": "python_output", "text": "42"}}),
        chunk({"content": "42 日本."}),
        chunk({}, "stop"),
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 12}},
        b"data: [DONE]",
    ]
    model = ServerChat(server.url, api_key="secret")
    assert model.name == "toy"
    earlier = [
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
        {"type": "text", "text": "2."},
    ]
    system = {"role": "system", "content": "be brief"}
    as_sent = {"role": "assistant", "content": "2.", "nanochat": {"parts": earlier}}
    answer = model.answer([system, user("1+1?"), {"role": "assistant", "content": earlier}, user("?")], SETTINGS)
    pieces = [tuple(piece) for piece in answer.pieces]
    assert pieces == [("text", "It is "), ("python", "12+30"), ("python_output", "42"), ("text", "42 日本.")]
    assert (answer.finish_reason, answer.num_tokens, answer.num_dropped_turns) == ("stop", 12, 0)
    assert server.keys == ["Bearer secret"]
    assert server.asked == [
        {
            "model": "toy",
            "messages": [system, user("1+1?"), as_sent, user("?")],
            "temperature": 0.3,
            "top_k": 7,
            "top_p": 0.9,
            "max_tokens": 33,
            "seed": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_addresses(server: Server, ending: str) -> None:
    assert ServerChat(server.url.removeprefix("http://") + ending).name == "toy"


@pytest.mark.parametrize("while_reading", [False, True])
def test_stopping_hangs_up(server: Server, while_reading: bool) -> None:
    server.is_endless = while_reading
    server.chunks = [chunk({"content": "a"})]
    answer = ServerChat(server.url).answer([user("x")], SETTINGS)
    assert next(answer.pieces).text == "a"
    if not while_reading:
        answer.stop()
    else:
        threading.Timer(0.2, answer.stop).start()
    for _ in answer.pieces:
        pass
    answer.stop()
    assert answer.finish_reason is None
    deadline = time.monotonic() + 10
    while server.num_streaming and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.num_streaming == 0


def test_oldest_turns_are_left_out_until_it_fits(server: Server) -> None:
    too_long = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    server.refusal = lambda body: (400, too_long) if len(body["messages"]) > 4 else None
    server.chunks = [chunk({"content": "ok"}, "length"), b"data: [DONE]"]
    turns = [user("1"), {"role": "assistant", "content": "a"}, user("2"), {"role": "assistant", "content": "b"}]
    system = {"role": "system", "content": "s"}
    answer = ServerChat(server.url).answer([system, *turns, user("3")], SETTINGS)
    assert [piece.text for piece in answer.pieces] == ["ok"]
    assert (answer.num_dropped_turns, answer.finish_reason) == (1, "length")
    assert server.asked[-1]["messages"] == [system, *turns[2:], user("3")]
    server.refusal = lambda body: (400, too_long)
    with pytest.raises(UserError, match="too long"):
        ServerChat(server.url).answer([system, *turns, user("3")], SETTINGS)


def test_room_is_left_for_answers_once_the_context_is_known(server: Server) -> None:
    """A server of one token a character and 1000 tokens: the first answer is cut, the next are not."""
    model = ServerChat(server.url)
    turns = [user("x" * 200), {"role": "assistant", "content": "y" * 200}] * 2
    messages = [*turns, user("z" * 100)]
    num_tokens = len(json.dumps(messages))
    usage = {"prompt_tokens": num_tokens, "completion_tokens": 1000 - num_tokens}
    server.chunks = [chunk({"content": "half"}, "length"), {"choices": [], "usage": usage}, b"data: [DONE]"]
    settings = SETTINGS.changed("max_new_tokens", 500)
    first = model.answer(messages, settings)
    list(first.pieces)
    assert first.num_dropped_turns == 0
    second = model.answer(messages, settings)
    list(second.pieces)
    assert second.num_dropped_turns == 1
    assert server.asked[-1]["messages"] == messages[2:], "750 of 1000: no more than is needed"


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ((429, {"error": {"message": "the queue is full"}}), "reports: the queue is full"),
        ((401, {"error": {"message": "wrong key", "code": None}}), "reports: wrong key"),
        ((500, "oh"), "reports: 500 Internal Server Error"),
        ((502, {"error": "down"}), "reports: 502 Bad Gateway"),
    ],
)
def test_refusals(server: Server, refused: tuple, message: str) -> None:
    server.refusal = lambda body: refused
    with pytest.raises(UserError, match=message):
        ServerChat(server.url).answer([user("x")], SETTINGS)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([chunk({"content": "half"})], "closed the connection during the answer"),
        ([chunk({"content": "half"}), b"data: {"], "closed the connection during the answer"),
        ([chunk({"content": "half"}), {"error": {"message": "request timed out"}}], "reports: request timed out"),
    ],
)
def test_answers_that_break_off(server: Server, chunks: list, message: str) -> None:
    server.chunks = chunks
    answer = ServerChat(server.url).answer([user("x")], SETTINGS)
    assert next(answer.pieces).text == "half"
    with pytest.raises(UserError, match=message):
        list(answer.pieces)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://127.0.0.1", "is not a server address"),
        ("http://", "is not a server address"),
        ("http://127.0.0.1:99999", "has an invalid port"),
        ("http://127.0.0.1:1", "no server responds at http://127.0.0.1:1"),
    ],
)
def test_no_server(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServerChat(url)

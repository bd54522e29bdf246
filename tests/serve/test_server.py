"""The server over real connections, by OpenAI's own client and by clients that misbehave."""

import concurrent.futures
import contextlib
import http.client
import json
import socket

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from nanochat_lit import cli
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export
from nanochat_lit.serve.api import ServeSettings
from nanochat_lit.serve.server import ChatServer
from nanochat_lit.tokenizer import render_for_completion

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=60) as client:
        yield client


def errors(body):
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def test_the_answer_is_the_engines(client, make_export):
    """Against the engine in this process, which has no slots beside it, and its true counts."""
    model, tokenizer = load_export(make_export(), "cpu", "float32", cast_weights=True)
    prompt = render_for_completion(tokenizer, {"messages": HELLO})
    (expected,) = Engine(model, tokenizer).generate(prompt, max_new_tokens=24)
    answer = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_completion_tokens=24)
    assert answer.choices[0].message.content == tokenizer.decode(expected)
    assert answer.choices[0].finish_reason == ("length" if len(expected) == 24 else "stop")
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(expected),
        "total_tokens": len(prompt) + len(expected),
    }


def test_an_imported_nanochat_model_is_served(start_server, nanochat_folder, random_model, tmp_path):
    """With nanochat's tokenizer, whose tokens are not those of the other servers here."""
    folder = nanochat_folder(random_model(sequence_len=128))
    assert cli.main(["import-nanochat", str(folder), "--out", str(tmp_path / "export")]) == 0
    model, tokenizer = load_export(tmp_path / "export", "cpu", "float32", cast_weights=True)
    prompt = render_for_completion(tokenizer, {"messages": HELLO})
    (expected,) = Engine(model, tokenizer).generate(prompt, max_new_tokens=16)
    status, answer = start_server(model=tmp_path / "export").chat(temperature=0, max_tokens=16)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(expected)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_stream_says_the_same(client, temperature):
    arguments = {"model": "tiny", "messages": HELLO, "temperature": temperature, "seed": 3, "max_tokens": 20}
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert content == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    bare = list(client.chat.completions.create(**arguments, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in bare)


def test_seed_and_sampling(client):
    def ask(**fields):
        extra = {"extra_body": {"top_k": fields.pop("top_k")}} if "top_k" in fields else {}
        answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=16, **fields, **extra)
        return answer.choices[0].message.content

    assert ask(temperature=1, seed=1) == ask(temperature=1, seed=1) != ask(temperature=1, seed=2)
    assert ask(temperature=1.5) != ask(temperature=1.5)
    greedy = ask(temperature=0)
    assert ask(temperature=1, seed=1, top_k=1) == ask(temperature=1, seed=1, top_p=1e-6) == greedy


def test_stop_strings(client):
    plain = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=40)
    text = plain.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    assert stop.isprintable()
    cut = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=40, stop=stop)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < plain.usage.completion_tokens


def test_models_and_health_and_metrics(client, server):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "nanochat-lit"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    status, _, body = server.request("/health")
    health = json.loads(body)
    kernel = health.pop("kernel")
    assert "(C++)" in kernel or kernel.startswith("PyTorch; not the C++ kernel: ")
    assert (status, health) == (200, {"status": "ok", "model": "tiny", "ready": 1, "workers": 1})
    before = server.metric("nanochat_completion_tokens_total")
    usage = server.chat(max_tokens=5, temperature=0)[1]["usage"]
    server.wait(server.is_idle)
    assert server.metric("nanochat_completion_tokens_total") == before + usage["completion_tokens"]
    status, headers, body = server.request("/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    page = body.decode()
    assert 'nanochat_requests_total{path="/v1/chat/completions",status="200"}' in page
    assert 'nanochat_time_to_first_token_seconds_bucket{le="+Inf"}' in page
    assert server.metric("nanochat_slots") == 4


def test_log_probabilities_whole_and_streamed(client):
    """Their tokens are the answer's text; the sampled token leads the list where decoding is greedy."""
    fields = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0, "logprobs": True}
    choice = client.chat.completions.create(**fields, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert b"".join(bytes(token.bytes or []) for token in content).decode(errors="replace") == choice.message.content
    for token in content:
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0
    chunks = client.chat.completions.create(**fields, stream=True)
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [(token.token, token.logprob, token.top_logprobs) for token in streamed] == [
        (token.token, token.logprob, []) for token in content
    ]
    assert client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2).choices[0].logprobs is None


def test_bias_and_penalties_change_the_answer(client):
    fields = {"model": "tiny", "messages": HELLO, "max_tokens": 10, "temperature": 0}
    biased = client.chat.completions.create(**fields, logit_bias={"97": 100}, logprobs=True).choices[0]
    assert len({token.token for token in biased.logprobs.content}) == 1
    penalized = client.chat.completions.create(
        **fields, frequency_penalty=2, extra_body={"repetition_penalty": 100.0}, logprobs=True
    ).choices[0]
    tokens = [(token.token, tuple(token.bytes or ())) for token in penalized.logprobs.content]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, None),
        ({"n": 17}, openai.BadRequestError, "n"),
        ({"max_tokens": 5000}, openai.BadRequestError, "max_tokens"),
        ({"messages": [{"role": "user", "content": "é" * 600}]}, openai.BadRequestError, "messages"),  # > context
    ],
)
def test_refusals_by_the_client(client, fields, error, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **fields})
    assert caught.value.param == param


def test_too_long_a_prompt_has_openais_code(server):
    status, body = server.chat(messages=[{"role": "user", "content": "é" * 6000}])
    assert status == 400
    assert errors(body)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stated", [True, False], ids=["content-length", "chunked"])
def test_too_large_a_body_is_413(server, stated):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        size = 1_200_000
        length = b"Content-Length: %d" % size if stated else b"Transfer-Encoding: chunked"
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n%s\r\n\r\n"
            % length
        )
        connection.sendall(b"x" * size if stated else b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size))
        response = b""
        while b"}}" not in response:
            got = connection.recv(65536)
            assert got, response
            response += got
    assert response.startswith(b"HTTP/1.1 413")
    message = errors(json.loads(response.partition(b"\r\n\r\n")[2]))["message"]
    size = "1200000" if stated else "more than 1000000"
    assert message == f"the body has {size} bytes, the limit (--max_body_bytes) is 1000000; send less"


def test_models_say_what_they_are(server):
    status, _, body = server.request("/v1/models")
    assert status == 200
    assert "2 layers of width 32" in json.loads(body)["data"][0]["description"]


def test_other_paths_and_methods_have_the_same_shape(server):
    status, _, body = server.request("/v1/nothing")
    assert status == 404
    errors(json.loads(body))
    status, _, body = server.request("/v1/chat/completions")
    assert status == 405
    errors(json.loads(body))


def test_pages_of_the_named_origin_may_call(server):
    _, headers, _ = server.request("/v1/models", Origin="https://page.example")
    assert headers["access-control-allow-origin"] == "https://page.example"
    _, headers, _ = server.request("/v1/models", Origin="https://other.example")
    assert "access-control-allow-origin" not in headers
    # a page may read what was wrong, too, and when to come back
    status, headers, _ = server.request("/v1/chat/completions", b"{}", Origin="https://page.example")
    assert (status, headers["access-control-allow-origin"]) == (400, "https://page.example")
    assert headers["access-control-expose-headers"] == "Retry-After"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("PUT", "/v1/chat/completions", 405), ("POST", "/v1/chat/completions", 413)],
)
def test_pages_may_read_errors_of_no_route(server, method, path, status):
    size = 1_200_000 if status == 413 else 0
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        wanted = {"Origin": "https://page.example", "Authorization": "Bearer secret"}
        connection.request(method, path, b"x" * size, wanted)
        response = connection.getresponse()
        body = response.read()
    assert response.status == status
    assert response.headers["Access-Control-Allow-Origin"] == "https://page.example"
    errors(json.loads(body))


@pytest.mark.parametrize("origins", [(), ("https://page.example",)])
def test_a_defect_is_told_to_pages_and_counted(make_export, monkeypatch, origins):
    """In this process, where one can be put in."""
    chosen = ServeSettings(model=str(make_export()), name="tiny", cors_origins=origins, allowed_hosts=("testserver",))
    server = ChatServer(chosen, [None])
    monkeypatch.setattr(server.metrics, "render", lambda: 1 / 0)
    client = TestClient(server.app, raise_server_exceptions=False)
    headers = {"Origin": "https://page.example" if origins else "http://testserver"}
    response = client.get("/metrics", headers=headers)
    assert response.status_code == 500
    assert errors(response.json())["code"] == "internal_error"
    assert response.headers.get("access-control-allow-origin") == (origins[0] if origins else None)
    assert server.metrics.requests.values == {("/metrics", "500"): 1}
    with pytest.raises(ZeroDivisionError):  # for the log
        TestClient(server.app).get("/metrics")


@pytest.mark.parametrize(("origin", "status"), [("https://page.example", 200), ("https://other.example", 400)])
def test_a_browser_that_asks_first_needs_no_key(server, origin, status):
    """Browsers ask before a POST of JSON, and never with the key."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        wished = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        connection.request("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **wished})
        response = connection.getresponse()
        response.read()
    assert response.status == status
    assert response.headers["Access-Control-Allow-Origin"] == (origin if status == 200 else None)


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
for _ in range(2):  # lists and objects in each other
    JSON = JSON | st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=8), JSON, max_size=3)
NAMES = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "user",
    "n",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "presence_penalty",
    "min_p",
    "response_format",
    "structured_outputs",
    "tools",
    "tool_choice",
    "x",
]
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]), "content": JSON | st.text()},
    optional={"tool_calls": JSON, "tool_call_id": JSON},
)
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5).flatmap(
    lambda body: st.sampled_from([body, {**body, "messages": HELLO, "max_tokens": 2}])
) | st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=4), "max_tokens": st.just(2)})


@pytest.mark.parametrize("number", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_body_gives_a_500(server, number):
    @settings(max_examples=number, deadline=None, database=None)
    @given(raw=BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=60))
    def check(raw):
        status, _, text = server.request("/v1/chat/completions", raw)
        assert status in (200, 400, 404)
        if status != 200:
            errors(json.loads(text))

    check()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"messages":' + b"[" * 5000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "\\ud800", "content": "x"}]}',
        b'{"\\ud800": 1}',
        b'{"model": "\\ud800"}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": "\\ud800", "max_tokens": 2}',
        b'{"messages": [{"role": "user", "content": "x"}], "user": "\\ud800", "max_tokens": 2}',
    ],
)
def test_odd_bodies(server, raw):
    status, _, text = server.request("/v1/chat/completions", raw)
    assert status in ((200, 400) if b"max_tokens" in raw else (400, 404))
    if status != 200:
        errors(json.loads(text))


def test_a_full_queue_is_429_and_others_go_on(server):
    def ask(number):
        body = json.dumps({"messages": HELLO, "max_tokens": 400, "temperature": 1, "seed": number}).encode()
        return server.request("/v1/chat/completions", body, timeout_s=120)

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8  # four slots and four that wait
    for status, headers, text in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert errors(json.loads(text))["code"] == "queue_full"
    server.wait(server.is_idle)


@pytest.fixture(scope="module")
def patient_server(start_server, make_export):
    """Its answers take seconds, so that they last until a slow test has acted."""
    return start_server("--slots", "4", "--api_key", "secret", model=make_export(sequence_len=8192, n_layer=8))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(patient_server, stream):
    server, num_tokens = patient_server, 4096
    disconnects, tokens = server.metric("nanochat_disconnects_total"), server.metric("nanochat_completion_tokens_total")
    # greedy: sampled answers of a random model end when it happens to draw the end of a turn
    connections = [server.open_stream(max_tokens=num_tokens, temperature=0, stream=stream) for _ in range(4)]
    server.wait(lambda: server.metric("nanochat_slots_active") == 4)
    for connection in connections:
        connection.close()
    server.wait(server.is_idle, 20)
    assert server.metric("nanochat_disconnects_total") == disconnects + 4
    assert server.metric("nanochat_completion_tokens_total") - tokens < 4 * num_tokens
    assert server.chat(max_tokens=2)[0] == 200


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Bearer secre\xfc", "Basic secret", "secret", "Bearer"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/chat/completions"])
def test_a_key_is_asked_for(server, path, given):
    body = None if "chat" not in path else b"not even JSON"
    status, headers, text = server.request(path, body, Authorization=given)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert errors(json.loads(text))["code"] == "invalid_api_key"


def test_openais_client_knows_what_a_wrong_key_is(server):
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_health_needs_no_key(server):
    assert server.request("/health", Authorization="")[0] == 200

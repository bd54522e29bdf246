"""/v1/completions, several answers to one request, and /tokenize, by OpenAI's client against the model in this process."""

import json
from collections import defaultdict

import openai
import pytest
import torch

from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export
from nanochat_lit.tokenizer import render_for_completion

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(make_export):
    return load_export(make_export(), "cpu", "float32", cast_weights=True)


def test_several_answers_are_samples_of_one_seed(client, loaded):
    """Those of the engine, whole and streamed; the prompt is counted once."""
    model, tokenizer = loaded
    prompt = render_for_completion(tokenizer, {"messages": HELLO})
    expected = Engine(model, tokenizer).generate(prompt, num_samples=3, max_new_tokens=12, temperature=1.0, seed=4)
    fields = {"model": "tiny", "messages": HELLO, "n": 3, "max_tokens": 12, "temperature": 1.0, "seed": 4}
    fields["extra_body"] = {"top_k": 0}
    whole = client.chat.completions.create(**fields)
    texts = [choice.message.content for choice in whole.choices]
    assert texts == [tokenizer.decode(ids) for ids in expected]
    assert len(set(texts)) == 3
    assert whole.usage.prompt_tokens == len(prompt)
    assert whole.usage.completion_tokens == sum(map(len, expected))
    streamed, ends = defaultdict(str), {}
    usage = None
    for chunk in client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert [streamed[index] for index in range(3)] == texts
    assert [ends[index] for index in range(3)] == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_more_answers_than_slots_wait(client, server):
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=8, max_tokens=3, temperature=1.0)
    assert [choice.index for choice in answer.choices] == list(range(8))
    with pytest.raises(openai.RateLimitError):  # 4 slots and 4 places in the queue
        client.chat.completions.create(model="tiny", messages=HELLO, n=16, max_tokens=100, temperature=0)
    server.wait(server.is_idle)


def test_a_text_is_continued(client, loaded):
    model, tokenizer = loaded
    prompts = ["the cat", "12 + 34 = 46. naïve"]
    ids = [tokenizer.encode(prompt, prepend_bos=True) for prompt in prompts]
    expected = [Engine(model, tokenizer).generate(one, max_new_tokens=9)[0] for one in ids]
    texts = [tokenizer.decode(one) for one in expected]
    fields = {"model": "tiny", "max_tokens": 9, "temperature": 0}
    for prompt in (prompts, ids):
        answer = client.completions.create(prompt=prompt, **fields)
        assert [choice.text for choice in answer.choices] == texts
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    (choice,) = client.completions.create(prompt=ids[0], echo=True, **fields).choices
    assert choice.text == "the cat" + texts[0]
    streamed = defaultdict(str)
    for chunk in client.completions.create(prompt=prompts, stream=True, echo=True, **fields):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert [streamed[0], streamed[1]] == [prompt + text for prompt, text in zip(prompts, texts, strict=True)]


@pytest.mark.parametrize("length", [5, 400])
def test_prompt_logprobs_are_the_models(client, loaded, length):
    """The longer prompt is read in two chunks."""
    model, tokenizer = loaded
    generator = torch.Generator().manual_seed(length)
    special = set(tokenizer.special_ids.values())
    ids = [tokenizer.bos_id]
    ids += [i for i in torch.randint(320, (length * 2,), generator=generator).tolist() if i not in special][:length]
    expected = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    fields = {"model": "tiny", "prompt": ids, "echo": True, "logprobs": 2, "temperature": 0}
    (choice,) = client.completions.create(max_tokens=1, **fields).choices
    found = choice.logprobs
    own = [expected[place, token].item() for place, token in enumerate(ids[1:])]
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:-1] == pytest.approx(own, abs=1e-3)
    best = expected.max(dim=-1).values.tolist()
    assert [max(top.values()) for top in found.top_logprobs[1:]] == pytest.approx(best, abs=1e-3)
    assert len(found.tokens) == len(ids) + 1
    assert found.tokens[0] == "<|bos|>"
    for offset, token in list(zip(found.text_offset, found.tokens, strict=True))[1:6]:
        assert choice.text[offset:].startswith(token) or "\ufffd" in token
    answer = client.completions.create(max_tokens=0, **fields)
    assert answer.choices[0].logprobs.token_logprobs[1:] == pytest.approx(own, abs=1e-3)
    assert (answer.choices[0].text, answer.usage.completion_tokens) == (tokenizer.decode(ids), 0)
    chunks = list(client.completions.create(max_tokens=1, stream=True, **fields))
    assert [lp for chunk in chunks for lp in chunk.choices[0].logprobs.token_logprobs] == found.token_logprobs


def test_the_token_that_ends_an_answer_has_a_logprob(client, loaded):
    """lm_eval expects max_tokens log-probabilities after the prompt's, whatever the model says."""
    end = loaded[1].special_ids["<|assistant_end|>"]
    fields = {"prompt": "the", "echo": True, "logprobs": 0, "max_tokens": 1, "temperature": 0}
    (choice,) = client.completions.create(model="tiny", logit_bias={str(end): 100}, **fields).choices
    assert choice.logprobs.tokens[-1] == "<|assistant_end|>"
    assert (choice.text, choice.finish_reason) == ("the", "stop")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "prompt", "must be a text"),
        ({"prompt": []}, "prompt", "must be a text"),
        ({"prompt": [[1], 2.5]}, "prompt", "not a number"),
        ({"prompt": [[]]}, "prompt", "has 0 tokens"),
        ({"prompt": [1] * 513}, "prompt", "513 tokens; use 1 to 512"),
        ({"prompt": [999999]}, "prompt", "outside the vocabulary"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "use at least 1"),
        ({"prompt": "a", "max_tokens": 0, "echo": True, "stream": True}, "stream", "nothing to stream"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "from 0 to 20"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "messages": HELLO}, "messages", "unknown parameter"),
        ({"prompt": "a", "model": "gpt-5"}, "model", "does not exist"),
    ],
    ids=str,
)
def test_refusals(server, fields, param, words):
    status, _, body = server.request("/v1/completions", json.dumps(fields).encode())
    error = json.loads(body)["error"]
    assert (status, error["param"]) == (404 if param == "model" else 400, param)
    assert words in error["message"]


def test_tokens_of_texts_and_conversations(server, loaded):
    _, tokenizer = loaded

    def post(path, **fields):
        status, _, body = server.request(path, json.dumps(fields).encode())
        return status, json.loads(body)

    ids = tokenizer.encode("naïve 🙂", prepend_bos=True)
    expected = {"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None}
    assert post("/tokenize", model="tiny", prompt="naïve 🙂") == (200, expected)
    _, bare = post("/tokenize", prompt="naïve", add_special_tokens=False, return_token_strs=True)
    assert "".join(bare["token_strs"]) == "naïve"
    assert bare["tokens"] == tokenizer.encode("naïve")
    _, chat = post("/tokenize", messages=HELLO)
    assert chat["tokens"] == render_for_completion(tokenizer, {"messages": HELLO})
    assert post("/detokenize", tokens=ids) == (200, {"prompt": "naïve 🙂"})
    for path, fields in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "\ud800"}),
        ("/tokenize", {"prompt": "a", "x": 1}),
        ("/detokenize", {"tokens": [999999]}),
        ("/detokenize", {"tokens": [True]}),
    ):
        assert post(path, **fields)[0] == 400
    assert server.request("/tokenize", b"{}", Authorization="")[0] == 401

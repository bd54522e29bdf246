"""response_format and structured_outputs: what is refused, and what OpenAI's client receives."""

import json
import re

import jsonschema
import openai
import pytest

from nanochat_lit.serve.request_fields import ApiError, answer_grammar

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Köln"]}, "days": {"type": "integer", "minimum": 1, "maximum": 30}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def json_schema(schema, **more):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, **more}}}


def structured(**form):
    return {"structured_outputs": form}


@pytest.mark.parametrize("body", [{}, {"response_format": None}, {"response_format": {"type": "text"}}])
def test_most_requests_have_no_grammar(body):
    assert answer_grammar(body) == ""


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"response_format": "json"}, "response_format", 'must be {"type": "text"}'),
        ({"response_format": {"type": "xml"}}, "response_format", "not an object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "must be"),
        (json_schema(None), "response_format", "must be"),
        (json_schema({"type": "text"}), "response_format", "Invalid type: text"),
        (json_schema({"not": {}}), "response_format", 'Unimplemented keys: ["not"]'),
        (json_schema({"enum": ["x" * 32_000]}), "response_format", "at most 32000"),
        (structured(), "structured_outputs", "not an object with no key"),
        (structured(regex="a", choice=["b"]), "structured_outputs", "not an object with 'regex', 'choice'"),
        (structured(grammar="root ::= 1"), "structured_outputs", "must be"),
        (structured(regex=3), "structured_outputs", "must be"),
        (structured(regex="(?=a)b"), "structured_outputs", "look-around"),
        (structured(choice=[]), "structured_outputs", "none of them empty"),
        (structured(choice=["a", 1]), "structured_outputs", "none of them empty"),
        ({**json_schema(SCHEMA), **structured(regex="a")}, "structured_outputs", "not both"),
    ],
    ids=str,
)
def test_refusals_name_the_field(body, param, words):
    with pytest.raises(ApiError, match=re.escape(words)) as caught:
        answer_grammar(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=60) as client:
        yield client


def answers(client, **fields):
    """The whole answer, after a check that the stream gives the same."""
    fields = {"model": "tiny", "messages": HELLO, "seed": 3, "temperature": 1.0, "max_tokens": 300, **fields}
    whole = client.chat.completions.create(**fields).choices[0]
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].finish_reason == whole.finish_reason
    return whole


def test_json_by_schema(client):
    for seed in range(5):
        choice = answers(client, seed=seed, **json_schema(SCHEMA, strict=True))
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_json_objects_and_their_length(client):
    choice = answers(client, max_tokens=3, **json_schema({"type": "array", "minItems": 50}))
    assert choice.finish_reason == "length"
    biased = {"logit_bias": {"125": 0}, "response_format": {"type": "json_object"}}
    choice = answers(client, **biased)
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_regular_expressions_and_choices(client):
    choice = answers(client, extra_body=structured(regex="[a-c]{3}-[0-9]{2}"))
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", choice.message.content)
    choice = answers(client, extra_body=structured(choice=["left", "right"]))
    assert choice.message.content in ("left", "right")
    choice = answers(client, extra_body=structured(json={"type": "boolean"}))
    assert choice.message.content in ("true", "false")


def test_a_schema_that_cannot_be_followed_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, **json_schema({"uniqueItems": True}))
    assert caught.value.param == "response_format"


def test_a_schema_that_only_refers_to_itself_is_the_clients_error(client):
    with pytest.raises(openai.BadRequestError, match="too complex for its parser"):
        client.chat.completions.create(model="tiny", messages=HELLO, **json_schema({"$ref": "#"}))

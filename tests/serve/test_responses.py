"""The Responses API: its requests as chat requests, and its answers as OpenAI's client reads them."""

import json

import pytest

from nanochat_lit.common.tool_format import ToolCall, render_call
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.sampling_params import CHAT_PARAMS
from nanochat_lit.serve.chat_request import Tools, parse_chat_request
from nanochat_lit.serve.messages import Update, merged
from nanochat_lit.serve.request_fields import ApiError
from nanochat_lit.serve.responses import ResponseWriter, parse_response_request

openai = pytest.importorskip("openai", reason="needs pip install openai")

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"name": "get_time", "description": "Local time", "parameters": SCHEMA}
HEAD = {"id": "resp_1", "created": 5, "model": "toy"}
COUNTS = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def parsed(**fields):
    return parse_response_request({"input": "hello", **fields}, "toy", CHAT_PARAMS)


def test_a_request_is_the_chat_request_of_the_same_meaning() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "time?"}]},
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "get_time",
            "arguments": "{}",
            "id": "fc_1",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c2", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "14:05"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "15:05"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "It is 14:05.", "annotations": [], "logprobs": []}],
        },
        {"role": "user", "content": "thanks"},
    ]
    asked = parsed(
        input=items,
        instructions="Be brief.",
        max_output_tokens=9,
        temperature=0.5,
        seed=3,
        tools=[{"type": "function", **TOOL, "strict": True}],
        tool_choice={"type": "function", "name": "get_time"},
        store=False,
    )
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "get_time", "arguments": "{}"}} for n in (1, 2)]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "14:05"},
        {"role": "tool", "tool_call_id": "c2", "content": "15:05"},
        {"role": "assistant", "content": "It is 14:05."},
        {"role": "user", "content": "thanks"},
    ]
    chat = {
        "messages": messages,
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 3,
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": {"type": "function", "function": {"name": "get_time"}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    expected = parse_chat_request(chat, "toy", CHAT_PARAMS)
    assert vars(asked) == {**vars(expected), "stream": False}


def test_formats() -> None:
    for given, expected in (
        (
            {"type": "json_schema", "name": "x", "schema": SCHEMA},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        ),
        ({"type": "json_object"}, {"type": "json_object"}),
        ({"type": "text"}, {"type": "text"}),
    ):
        chat = {"messages": [{"role": "user", "content": "hello"}], "response_format": expected}
        grammar = parse_chat_request(chat, "toy", CHAT_PARAMS).sampling.grammar
        assert parsed(text={"format": given}).sampling.grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"store": True}, "store", "stores no responses; send all messages in input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "stores no responses"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "reasoning is not supported"),
        ({"messages": []}, "messages", "unknown parameter 'messages'"),
        ({"input": []}, "input", "at least one item"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "'item_reference'"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "must be one of"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content", "text-only"),
        ({"instructions": 3}, "instructions", "must be a string"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "must be of type function, not 'web_search'"),
        ({"tools": [{"type": "function", "name": "?"}]}, "tools[0].name", "must match"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "text.format"),
        ({"text": 3}, "text", "text must be"),
        ({"model": "other"}, "model", "does not exist"),
    ],
)
def test_errors_name_the_field(fields, param, message) -> None:
    with pytest.raises(ApiError) as raised:
        parsed(**fields)
    assert raised.value.param == param
    assert message in str(raised.value)


def events_of(text: str) -> list[dict]:
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("kind", ["text", "call", "text and call", "nothing"])
def test_a_stream_adds_up_to_the_whole(kind: str, reason: str) -> None:
    """By OpenAI's own accumulator of a stream."""
    from openai.lib.streaming.responses._responses import ResponseStreamState

    parts = [Piece("text", "It "), Piece("python", "1+1"), Piece("python_output", "2"), Piece("text", "is 2.")]
    call = [Piece("text", render_call(ToolCall("get_time", {"a": 1})))]
    parts = {"text": parts, "call": call, "text and call": [*parts, *call], "nothing": []}[kind]
    body = {"tools": [{"type": "function", **TOOL}], "max_output_tokens": 9}

    def writer() -> ResponseWriter:
        return ResponseWriter(HEAD, tools=Tools(functions=(TOOL,)), body=body)

    answer, streaming, alone = Update(0, [], 0, None, None), writer(), writer()
    text = streaming.start()
    for index, part in enumerate([*parts, None]):
        is_last = index == len(parts)
        update = Update(0, [part] if part else [], 1, reason if is_last else None, None)
        answer = merged([answer, update])
        text += streaming.events(update)
    text += streaming.end(COUNTS)
    choice = alone.choice(answer)
    whole = openai.types.responses.Response.model_validate(alone.whole([choice], COUNTS))

    state = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    adapter = openai._models.construct_type
    seen = []
    for event in events_of(text):
        seen.append(adapter(value=event, type_=openai.types.responses.ResponseStreamEvent))
        state.handle_event(seen[-1])
    final = seen[-1].response
    assert seen[-1].type == ("response.completed" if reason == "stop" else "response.incomplete")
    assert final.status == whole.status == ("completed" if reason == "stop" else "incomplete")
    assert final.output_text == whole.output_text == ("It is 2." if "text" in kind else "")
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    calls = [(item.name, json.loads(item.arguments)) for item in whole.output if item.type == "function_call"]
    assert calls == ([("get_time", {"a": 1})] if "call" in kind else [])
    assert whole.usage.input_tokens == final.usage.input_tokens == 3
    deltas = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert deltas == whole.output_text


@pytest.mark.slow
def test_openai_s_client(server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=60) as client:
        chat = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], temperature=0, max_tokens=8
        )
        asked = {"model": "tiny", "input": "hello", "temperature": 0, "max_output_tokens": 8}
        whole = client.responses.create(**asked)
        assert whole.output_text == chat.choices[0].message.content
        assert whole.usage.output_tokens == chat.usage.completion_tokens
        assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        with client.responses.stream(**asked) as stream:
            kinds = [event.type for event in stream]
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.incomplete"
        last = next(
            event for event in client.responses.create(**asked, stream=True) if event.type == "response.incomplete"
        )
        assert last.response.output_text == whole.output_text
        text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
        assert isinstance(
            json.loads(
                client.responses.create(model="tiny", input="hello", text=text, max_output_tokens=200).output_text
            )["a"],
            int,
        )
        tools = [{"type": "function", **TOOL}]
        called = client.responses.create(
            model="tiny", input="hello", tools=tools, tool_choice="required", max_output_tokens=200
        )
        assert {item.type for item in called.output} == {"function_call"}
        back = [{"role": "user", "content": "hello"}, *called.output]
        back += [
            {"type": "function_call_output", "call_id": one.call_id, "output": "14:05"}
            for one in called.output
            if one.type == "function_call"
        ]
        assert client.responses.create(model="tiny", input=back, tools=tools, max_output_tokens=4).status
        with pytest.raises(openai.BadRequestError, match="stores no responses"):
            client.responses.create(model="tiny", input="hello", store=True)
        with pytest.raises(openai.BadRequestError, match="the input have"):
            client.responses.create(model="tiny", input="é" * 6000)

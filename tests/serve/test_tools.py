"""Functions of a client: what is refused, what the model reads, and what OpenAI's client receives."""

import json

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from nanochat_lit.common.tool_format import ToolCall, render_call, render_tools
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_request import Tools, parse_chat_request
from nanochat_lit.serve.chat_response import ChatWriter, join_parts
from nanochat_lit.serve.messages import Update, merged
from nanochat_lit.serve.request_fields import ApiError

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"City": {"enum": ["Paris", "Köln"]}},
    },
}
TIME = {"name": "get_time"}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}


def parse(**body):
    return parse_chat_request({"messages": HELLO, **body}, "tiny", SamplingParams())


def test_functions_are_offered_in_the_first_turn():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    request = parse(messages=messages, tools=TOOLS)
    offer = render_tools([WEATHER, TIME])
    assert request.messages == [{"role": "user", "content": f"Be brief.\n\n{offer}\n\nhi"}]
    assert (request.tools.names, request.sampling.grammar) == (["get_weather", "get_time"], "")
    for fields in ({}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}, {"tool_choice": "auto"}):
        assert parse(**fields).messages == HELLO
        assert parse(**fields).tools == Tools()


def test_calls_and_results_are_text_of_the_conversation():
    calls = [CALL, {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Köln"}'}}]
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "rain"}]},
        {"role": "assistant", "content": "Wait. ", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:01"},
    ]
    time = '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'
    weather = '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>'
    assert parse(messages=messages).messages == [
        *HELLO,
        {"role": "assistant", "content": time + weather},
        {"role": "user", "content": "<tool_response>12:00</tool_response>\n\n<tool_response>rain</tool_response>"},
        {"role": "assistant", "content": f"Wait. {time}"},
        {"role": "user", "content": "<tool_response>12:01</tool_response>"},
    ]
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], "nanochat": {"parts": parts}}
    turns = parse(messages=[*HELLO, answer, *HELLO]).messages
    assert turns[1]["content"] == [*parts, {"type": "text", "text": time}]


def calling(**call):
    return [*HELLO, {"role": "assistant", "tool_calls": [{**CALL, **call}]}, *HELLO]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": {}}, "tools", "a list of at most 64 functions, not an object"),
        ({"tools": [0] * 65}, "tools", "not 65 of them"),
        ({"tools": [{"type": "custom"}]}, "tools[0]", 'must be {"type": "function"'),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "must match"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}]}, "tools[0]", "JSON schema"),
        ({"tools": TOOLS + TOOLS}, "tools", "same name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "description": "x" * 32_000}}]},
            "tools",
            "at most 32000",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "must be"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "must be"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "not among the tools",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
            "with an answer in a given format",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
            "Unimplemented keys",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "which is not the id"),
        (
            {"messages": [*HELLO, {"role": "tool", "tool_call_id": [], "content": "x"}]},
            "messages[1].tool_call_id",
            "not the id",
        ),
        ({"messages": calling(function=None)}, "messages[1].tool_calls[0]", "must be"),
        (
            {"messages": calling(function={"name": "f", "arguments": "["})},
            "messages[1].tool_calls[0]",
            "must be a JSON object as a string",
        ),
        ({"messages": [{**HELLO[0], "tool_calls": [CALL]}]}, "messages[0].tool_calls", "not for user messages"),
    ],
    ids=str,
)
def test_refusals_name_the_field(body, param, words):
    with pytest.raises(ApiError) as caught:
        parse(**body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert words in str(caught.value)


def deltas(text):
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    return [choice for event in events for choice in event["choices"]]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_whole_and_streamed(size):
    """In OpenAI's form, however the text arrives; the calculator's parts stay where they are."""
    tools = Tools(functions=(WEATHER, TIME))
    call = ToolCall("get_weather", {"city": "Köln"})
    text = "Let me see.\n" + render_call(call) + render_call(ToolCall("get_time", {})) + "<tool_call>oops</tool_call>"
    parts = [
        ("python", "1+1"),
        ("python_output", "2"),
        *[("text", text[n : n + size]) for n in range(0, len(text), size)],
    ]
    answer = Update(1, [], 0, None, None)
    for part in parts:
        answer = merged([answer, Update(1, [part], 1, None, None)])
    answer = answer._replace(finish_reason="stop")
    head = {"id": "x", "created": 1, "model": "m"}
    whole = ChatWriter(head, tools=tools).choice(answer)
    assert whole["finish_reason"] == "tool_calls"
    message = whole["message"]
    assert message["content"] == "Let me see.\n<tool_call>oops</tool_call>"
    assert [part["type"] for part in message["nanochat"]["parts"]] == ["python", "python_output", "text"]
    functions = [call["function"] for call in message["tool_calls"]]
    assert functions[0] == {"name": "get_weather", "arguments": '{"city": "Köln"}'}
    assert functions[1] == {"name": "get_time", "arguments": "{}"}
    assert len({call["id"] for call in message["tool_calls"]}) == 2

    writer = ChatWriter(head, tools=tools)
    last = len(parts) - 1
    choices = [
        choice
        for n, part in enumerate(parts)
        for choice in deltas(writer.events(Update(1, [part], 1, "stop" if n == last else None, None)))
    ]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == message["content"]
    assert choices[-1]["finish_reason"] == "tool_calls"
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls] == [0, 0, 1, 1]
    assert all(call["function"]["arguments"] == "" and call["id"] and call["type"] for call in calls[::2])
    assert [set(call) for call in calls[1::2]] == [{"index", "function"}] * 2
    assert [call["function"]["arguments"] for call in calls[1::2]] == ['{"city": "Köln"}', "{}"]


@pytest.mark.parametrize("begun", ["a <", '<tool_call>{"name": "get_time", '])
def test_text_that_may_become_a_call_stays_before_the_calculator(begun):
    """Whole and streamed, in the order in which the model wrote it."""
    parts = [("text", begun), ("python", "1+1"), ("python_output", "2"), ("text", "3 <")]
    head, tools = {"id": "x", "created": 1, "model": "m"}, Tools(functions=(TIME,))
    message = ChatWriter(head, tools=tools).choice(Update(1, parts, 4, "stop", None))["message"]
    assert [(part["type"], part["text"]) for part in message["nanochat"]["parts"]] == parts
    writer = ChatWriter(head, tools=tools)
    found = []
    for n, part in enumerate(parts):
        for choice in deltas(writer.events(Update(1, [part], 1, "stop" if n == 3 else None, None))):
            delta = choice["delta"]
            own = delta.get("nanochat") or {"type": "text", "text": delta.get("content")}
            found += [(own["type"], own["text"])] if own["text"] else []
    assert join_parts([Piece(*part) for part in found]) == parts


def test_without_tools_tags_are_text():
    text = render_call(ToolCall("get_time", {}))
    choice = ChatWriter({"id": "x", "created": 1, "model": "m"}).choice(Update(1, [("text", text)], 1, "stop", None))
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    assert "tool_calls" not in choice["message"]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=60) as client:
        yield client


def streamed(client, fields):
    """The message that the deltas make."""
    with client.chat.completions.stream(**fields) as stream:
        return stream.get_final_completion().choices[0]


def valid(call):
    function = {"get_weather": WEATHER, "get_time": TIME}[call.function.name]
    jsonschema.validate(json.loads(call.function.arguments), function.get("parameters", {"maxProperties": 0}))
    return call.function.name


FIELDS = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "max_tokens": 400, "temperature": 1.0}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_is_made_and_valid(client, choice):
    """By a model with random weights; its result is accepted in the next request."""
    names = set()
    for seed in range(4):
        fields = {**FIELDS, "seed": seed, "tool_choice": choice, "parallel_tool_calls": False}
        answer = client.chat.completions.create(**fields).choices[0]
        (call,) = answer.message.tool_calls
        names.add(valid(call))
        assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
        other = streamed(client, fields)
        assert other.finish_reason == "tool_calls"
        (other,) = other.message.tool_calls
        assert (other.function.name, other.function.arguments) == (call.function.name, call.function.arguments)
    assert names == {"get_weather"} if choice == NAMED else names <= {"get_weather", "get_time"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*HELLO, answer.message, result]
    assert isinstance(answer.message, ChatCompletionMessage)
    after = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS[1:], max_tokens=5)
    assert after.choices[0].message.role == "assistant"


def test_a_call_or_an_answer_in_a_format(client):
    """With tool_choice auto the model chooses between calls and the answer that is asked for."""
    form = {"structured_outputs": {"choice": ["<yes>", "<no>"]}}
    fields = {**FIELDS, "parallel_tool_calls": False, "extra_body": form}
    found = set()
    for seed in range(12):
        answer = client.chat.completions.create(**fields, seed=seed).choices[0]
        if answer.finish_reason == "tool_calls":
            found |= {valid(call) for call in answer.message.tool_calls}
        else:
            assert answer.message.content in ("<yes>", "<no>")
            found.add("answer")
    assert len(found) > 1


def test_a_call_that_is_cut_stays_text(client):
    fields = {**FIELDS, "tool_choice": "required", "max_tokens": 12}
    answer = client.chat.completions.create(**fields).choices[0]
    assert answer.finish_reason == "length"
    assert answer.message.tool_calls is None
    assert answer.message.content.startswith("<tool_call>"[:3])

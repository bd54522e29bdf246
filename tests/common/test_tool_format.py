"""The text of functions, calls and results: what is written is read, whole and in parts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lit.common.tool_format import (
    CALL_END,
    CALL_START,
    CallParser,
    ToolCall,
    parse_call,
    render_call,
    render_results,
    render_tools,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("</tool_call>"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(ToolCall, st.sampled_from(["get", "put"]), st.dictionaries(st.text(max_size=5), JSON, max_size=3))
TEXTS = st.text("ab <{tool_call", max_size=12).filter(lambda text: CALL_START not in text)


def joined(items):
    """Neighbouring texts as one."""
    found = []
    for item in items:
        if isinstance(item, str) and found and isinstance(found[-1], str):
            found[-1] += item
        elif item != "":
            found.append(item)
    return found


@settings(max_examples=50, deadline=None)
@given(CALLS)
def test_a_call_is_read_as_it_was_written(call):
    text = render_call(call)
    assert text.startswith(CALL_START)
    assert text.index(CALL_END) == len(text) - len(CALL_END)
    assert parse_call(text[len(CALL_START) : -len(CALL_END)]) == call


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS | CALLS, max_size=5), st.data())
def test_answers_are_split_however_they_arrive(items, data):
    text = "".join(item if isinstance(item, str) else render_call(item) for item in items)
    parser, found, place = CallParser(["get", "put"]), [], 0
    while place < len(text):
        step = data.draw(st.integers(1, 9))
        found += parser.push(text[place : place + step])
        place += step
    found += parser.finish()
    assert joined(found) == joined(items)
    assert parser.num_calls == sum(isinstance(item, ToolCall) for item in items)


def test_text_is_passed_on_at_once():
    parser = CallParser(["get"])
    assert parser.push("a < b") == ["a < b"]
    assert parser.push("c <tool") == ["c "]
    assert parser.push("bar>") == ["<toolbar>"]
    assert parser.push('x<tool_call>{"name": "get"') == ["x"]
    assert parser.push(', "arguments": {}}</tool_call> y') == [ToolCall("get", {}), " y"]


@pytest.mark.parametrize("length", range(1, len(CALL_START)))
def test_the_beginning_of_a_tag_is_held_back_once(length):
    """Until more text shows what it is, or the end, after which the parser is as new."""
    begun = CALL_START[:length]
    parser = CallParser(["get"])
    assert parser.push(f"a{begun}") == ["a"]
    assert parser.push("!") == [f"{begun}!"]
    assert parser.push(begun) == []
    assert parser.finish() == [begun]
    assert parser.finish() == []
    assert parser.push(render_call(ToolCall("get", {}))) == [ToolCall("get", {})]


@pytest.mark.parametrize(
    "inside",
    [
        *(
            "",
            "[]",
            "{",
            '{"name": "get"}',
            '{"name": 1, "arguments": {}}',
            '{"name": "get", "arguments": 3}',
            "[" * 9999,
        ),
        *('{"name": "other", "arguments": {}}', '{"name": "get", "arguments": {}, "id": 1}'),
    ],
)
def test_what_is_not_a_call_stays_text(inside):
    text = f"{CALL_START}{inside}{CALL_END}"
    parser = CallParser(["get"])
    assert joined([*parser.push(text + "z"), *parser.finish()]) == [text + "z"]
    assert joined([*parser.push(CALL_START + inside), *parser.finish()]) == [CALL_START + inside]


def test_calls_beyond_the_limit_are_dropped():
    call = ToolCall("get", {"a": 1})
    parser = CallParser(["get"], max_calls=1)
    assert parser.push(render_call(call) * 3) == [call]


def test_the_offer_and_the_results():
    text = render_tools([{"name": "f", "description": "Größe", "parameters": {"type": "object"}}, {"name": "g"}])
    assert text.splitlines() == [
        "You can call these functions:",
        '{"name": "f", "description": "Größe", "parameters": {"type": "object"}}',
        '{"name": "g"}',
        'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>',
    ]
    assert render_results(["1", "two"]) == "<tool_response>1</tool_response>\n\n<tool_response>two</tool_response>"
    assert json.loads(ToolCall("f", {"a": "é"}).as_strings()["arguments"]) == {"a": "é"}

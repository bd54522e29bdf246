"""OpenAI's and ShareGPT's conversations in our format, and the errors, which name file and line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource, check_source
from nanochat_lit.tasks.conversations import FileConversations
from nanochat_lit.tokenizer import foreign_chat, render_conversation
from nanochat_lit.tokenizer.foreign_chat import as_conversation


def call(name, **arguments):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


OPENAI = {
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is 12 + 30, "}, {"type": "text", "text": "and where?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call("calculator", expression="12+30")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "assistant", "content": "First ", "tool_calls": [call("place", city="Köln", number=2)]},
        {"role": "tool", "tool_call_id": "call_1", "content": "here"},
        {"role": "assistant", "content": "It is 42."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "Gladly."},
    ],
    "tools": [{"type": "function", "function": {"name": "calculator"}}],
    "source": "x",
}  # fmt: skip
OURS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12 + 30, and where?"},
    {
        "role": "assistant",
        "content": [
            {"type": "python", "text": "12+30"},
            {"type": "python_output", "text": "42"},
            {"type": "text", "text": "First "},
            {"type": "python", "text": 'place(city="Köln", number=2)'},
            {"type": "python_output", "text": "here"},
            {"type": "text", "text": "It is 42."},
        ],
    },
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "Gladly."},
]
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "What is 12 + 30?"},
        {"from": "function_call", "value": json.dumps({"name": "python", "arguments": {"code": "12+30"}})},
        {"from": "observation", "value": "42"},
        {"from": "gpt", "value": "It is 42."},
    ],
    "source": "y",
}
NATIVE = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_both_formats_become_ours():
    assert as_conversation(OPENAI)["messages"] == OURS
    assert as_conversation(OPENAI)["source"] == "x"
    converted = as_conversation(SHAREGPT)
    assert [message["role"] for message in converted["messages"]] == ["system", "user", "assistant"]
    assert converted["messages"][2]["content"] == [*OURS[2]["content"][:2], {"type": "text", "text": "It is 42."}]
    assert converted["source"] == "y"
    assert "conversations" not in converted
    assert as_conversation(NATIVE) is NATIVE
    old = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": "One."},
    ]
    parts = as_conversation({"messages": old})["messages"][1]["content"]
    assert [part["text"] for part in parts] == ["f()", "1", "One."]


def test_files_of_all_formats_are_read_by_streams_and_tasks(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", OPENAI, SHAREGPT, NATIVE)
    wanted = [as_conversation(OPENAI), as_conversation(SHAREGPT), NATIVE]
    assert list(FileSource(path, "messages").documents()) == wanted
    assert list(FileConversations(path)) == wanted
    token_ids, loss_mask = render_conversation(tokenizer, wanted[0])
    text = tokenizer.decode([token for token, trained in zip(token_ids, loss_mask, strict=True) if trained])
    assert text == '12+30First place(city="Köln", number=2)It is 42.Gladly.', "results of tools are not trained on"
    pq.write_table(pa.Table.from_pylist([SHAREGPT]), tmp_path / "b.parquet")
    assert [row["messages"] for row in FileSource(tmp_path / "b.parquet", "messages").documents()] == [
        wanted[1]["messages"]
    ]
    plain = {"messages": [{**message, "tool_calls": None} for message in NATIVE["messages"]]}
    pq.write_table(pa.Table.from_pylist([plain]), tmp_path / "c.parquet")
    assert [row["messages"][1]["content"] for row in FileSource(tmp_path / "c.parquet", "messages").documents()] == [
        "Ho"
    ]


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(("row", "message"), [
    ({"messages": [USER, {"role": "tool", "content": "1"}]}, "message 1 is the result of a tool that was not called"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [call("f")["function"]]}]}, "message 1 has a tool call without"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
     "message 1 calls a tool with arguments that are not JSON"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 0 has content that is not text"),
    ({"messages": [USER, {"role": "assistant", "content": "x", "weight": 0}]}, "message 1 has weight 0"),
    ({"messages": [USER, {"role": "assistant", "content": None, "refusal": "no"}]}, "message 1 has neither content nor"),
    ({"messages": [USER, {"role": "alien", "content": "x", "tool_calls": [call("f")]}]}, "one of the roles system"),
    ({"conversations": [{"from": "bird", "value": "x"}]}, "one of the names system, human"),
    ({"conversations": [{"from": "human"}]}, 'message 0 must be {"from", "value"}'),
    ({"conversations": [{"from": "gpt", "value": "x"}]}, "message 0 has role 'assistant', expected 'user'"),
    ({"dialogue": []}, r"no field 'messages' (fields: 'dialogue')"),
])  # fmt: skip
def test_errors_name_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", NATIVE, row)
    with pytest.raises(UserError) as error:
        check_source(path, "messages")
    assert f"{path}:2: " in str(error.value)
    assert message in str(error.value)
    if "dialogue" not in row:
        with pytest.raises(UserError) as error:
            FileConversations(path)
        assert f"{path}:2: " in str(error.value)
        assert message in str(error.value)


def with_field(field, value, index=1, form="messages"):
    if form == "messages":
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    else:
        turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    turns[index][field] = value
    return {form: turns}


@pytest.mark.parametrize("form", ["messages", "conversations"])
@pytest.mark.parametrize(("field", "value"), [
    ("weight", 0), ("weight", 0.5), ("train", False), ("training", False), ("loss", False), ("loss", "no"),
    ("loss_weight", 0.0), ("trainable", False), ("mask", True), ("masked", 1), ("ignore", True), ("loss_mask", [0, 1]),
    ("reasoning_content", "6 times 7"), ("thinking", "hm"), ("images", ["a.png"]), ("prefix", True),
])  # fmt: skip
def test_fields_that_change_what_is_learned_are_refused(tmp_path, form, field, value):
    rows = [NATIVE, with_field(field, value, form=form)]
    path = write(tmp_path / "a.jsonl", *rows)
    for read in (lambda: check_source(path, "messages"), lambda: FileConversations(path)):
        with pytest.raises(UserError, match=rf"a\.jsonl:2: .*message 1 has {field} "):
            read()
    table = pa.Table.from_pylist([rows[1]] * 2)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet, row 0: message 1 has {field} "):
        check_source(tmp_path / "a.parquet", "messages")


def test_such_fields_beside_the_messages(tmp_path):
    for row in ({**NATIVE, "weight": 0.5}, {**NATIVE, "rejected": "x"}, {**NATIVE, "images": ["a.png"]}):
        with pytest.raises(UserError, match=": the record has"):
            as_conversation(row)
        pq.write_table(pa.Table.from_pylist([row] * 2), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"row 0: the record has"):
            check_source(tmp_path / "a.parquet", "messages")
    parts = [{"type": "text", "text": "Ho", "train": False}]
    with pytest.raises(UserError, match="message 1 has train False"):
        as_conversation({"messages": [NATIVE["messages"][0], {"role": "assistant", "content": parts}]})


@pytest.mark.parametrize("field", ["response", "completion", "answer"])
def test_an_answer_beside_the_question(field, tmp_path):
    """It would be left out, and nothing learned; beside a whole conversation it is only a note."""
    question = {"messages": NATIVE["messages"][:1], field: "Ho"}
    pq.write_table(pa.Table.from_pylist([question] * 2), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"row 0: the answer stands in {field}, outside of messages"):
        check_source(tmp_path / "a.parquet", "messages")
    assert as_conversation({**NATIVE, field: "Ho"})["messages"] == NATIVE["messages"]
    assert as_conversation({"messages": NATIVE["messages"][:1], field: ""})["messages"] == NATIVE["messages"][:1]


@pytest.mark.parametrize(("field", "value", "index"), [
    ("weight", 1, 1), ("weight", 1.0, 1), ("train", True, 1), ("loss", 1, 1), ("trainable", None, 1), ("mask", False, 1),
    ("reasoning_content", None, 1), ("reasoning_content", "", 1), ("images", [], 1), ("name", "Ann", 0), ("id", "7", 1),
    ("train", False, 0), ("weight", 0, 0), ("tool_calls", None, 1),
])  # fmt: skip
def test_fields_that_say_what_is_done_anyway(field, value, index):
    for form in ("messages", "conversations"):
        messages = as_conversation(with_field(field, value, index, form))["messages"]
        assert [message["content"] for message in messages] == ["Hi", "Ho"]


def test_a_system_prompt_beside_the_messages(tmp_path, caplog):
    turns = [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "Arr, a pirate."}]
    row = {"conversations": turns, "system": "You are a pirate.", "tools": "[]"}
    expected = ["You are a pirate.", "Who are you?", "Arr, a pirate."]
    pq.write_table(pa.Table.from_pylist([row] * 2), tmp_path / "a.parquet")
    for path in (write(tmp_path / "a.jsonl", row, row), tmp_path / "a.parquet"):
        found = next(FileSource(path, "messages").documents())
        assert [message["content"] for message in found["messages"]] == expected
        assert "system" not in found
    assert as_conversation({**NATIVE, "system": "Be brief."})["messages"][0] == {
        "role": "system",
        "content": "Be brief.",
    }
    assert as_conversation({**NATIVE, "system": ""}) == {**NATIVE, "system": ""}
    both = {"messages": [{"role": "system", "content": "Be brief."}, *NATIVE["messages"]], "system": "Be brief."}
    assert as_conversation(both)["messages"] == both["messages"]
    with pytest.raises(UserError, match="both a system message and a separate"):
        as_conversation({**both, "system": "Be long."})
    with pytest.raises(UserError, match="must be text"):
        as_conversation({**NATIVE, "system": ["x"]})
    foreign_chat._warn_of_tools.cache_clear()  # once a process
    as_conversation({**NATIVE, "tools": [{"name": "f"}]})
    assert "tool definitions" in caplog.text


def test_either_column_with_the_messages_of_the_other_format():
    assert as_conversation({"conversations": NATIVE["messages"]})["messages"] == NATIVE["messages"]
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    assert as_conversation({"messages": turns})["messages"] == NATIVE["messages"]

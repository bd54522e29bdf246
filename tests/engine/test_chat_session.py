import json
from pathlib import Path

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.chat_session import ChatSession
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.tokenizer import validate_conversation

PARTS = [
    {"type": "text", "text": "It is "},
    {"type": "python", "text": "12+30"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": "42."},
]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_asking_grows_the_conversation(scripted_model) -> None:
    model, conversation = scripted_model(), ChatSession(settings=SamplingParams(seed=5), system="be brief")
    pieces = conversation.ask(model, "a sum")
    assert conversation.messages == [user("a sum"), {"role": "assistant", "content": []}], (
        "the question is there at once"
    )
    assert [tuple(piece) for piece in pieces] == [(part["type"], part["text"]) for part in PARTS]
    assert conversation.messages[1]["content"] == PARTS
    assert "".join(piece.text for piece in conversation.ask(model, "hi")) == "hi! (seed 6)"
    system = {"role": "system", "content": "be brief"}
    assert model.asked[1][0] == [system, user("a sum"), {"role": "assistant", "content": PARTS}, user("hi")]
    # the pieces of one kind are one part
    assert conversation.messages[3]["content"] == [{"type": "text", "text": "hi! (seed 6)"}]


def test_retry_edit_undo_and_clear(scripted_model) -> None:
    model, conversation = scripted_model(), ChatSession()
    for question in ("one", "two", "three"):
        list(conversation.ask(model, question))
    assert "".join(piece.text for piece in conversation.retry(model)) == "three! (seed 3)", "another seed"
    assert [message["content"] for message in conversation.messages[::2]] == ["one", "two", "three"]
    list(conversation.edit(model, 2, "zwei"))
    assert model.asked[-1][0] == [*conversation.messages[:2], user("zwei")]
    assert [message["content"] for message in conversation.messages[::2]] == ["one", "zwei"]
    assert conversation.undo() == "zwei"
    assert [message["content"] for message in conversation.messages[::2]] == ["one"]
    conversation.clear()
    assert conversation.messages == []
    assert "".join(piece.text for piece in conversation.ask(model, "one")) == "one! (seed 0)", "as at the beginning"
    conversation.clear()
    for act in (conversation.undo, lambda: conversation.retry(model)):
        with pytest.raises(UserError, match="the conversation is empty"):
            act()


def test_a_refused_question_changes_nothing(scripted_model) -> None:
    model, conversation = scripted_model(), ChatSession()
    list(conversation.ask(model, "one"))
    before = list(conversation.messages)
    for act in (lambda: conversation.ask(model, "fail"), lambda: conversation.edit(model, 0, "fail")):
        with pytest.raises(UserError, match="this cannot be answered"):
            act()
        assert conversation.messages == before


def test_what_was_said_stays_said(scripted_model) -> None:
    model, conversation = scripted_model(), ChatSession()
    pieces = conversation.ask(model, "endless")
    heard = [next(pieces).text, next(pieces).text]
    conversation.answer.stop()
    heard += [piece.text for piece in pieces]
    assert model.num_running == 0
    assert conversation.messages[-1]["content"][0]["text"] == "".join(heard)
    # leaving stops, too
    pieces = conversation.ask(model, "endless")
    next(pieces)
    pieces.close()
    assert model.num_running == 0
    with pytest.raises(UserError, match="fell silent"):
        list(conversation.ask(model, "break"))
    assert conversation.messages[-1]["content"] == [{"type": "text", "text": "half of "}]
    validate_conversation({"messages": conversation.messages})


def test_saved_and_loaded(scripted_model, tmp_path: Path) -> None:
    conversation = ChatSession(settings=SamplingParams(temperature=0.3, seed=4), system="be brief")
    with pytest.raises(UserError, match="empty"):
        conversation.save(tmp_path / "c.json")
    list(conversation.ask(scripted_model(), "a sum"))
    conversation.save(tmp_path / "c.json")
    conversation.save(tmp_path / "c.json")  # again: a saved conversation may be replaced
    loaded = ChatSession.load(tmp_path / "c.json")
    assert (loaded.settings, loaded.system, loaded.messages) == (
        conversation.settings,
        conversation.system,
        conversation.messages,
    )
    assert "".join(piece.text for piece in loaded.ask(scripted_model(), "hi")) == "hi! (seed 5)"
    saved = json.loads((tmp_path / "c.json").read_text())
    validate_conversation({"messages": saved["messages"]})  # a row of training data
    (tmp_path / "notes.json").write_text("[1]")
    with pytest.raises(UserError, match="not a saved conversation"):
        conversation.save(tmp_path / "notes.json")
    assert (tmp_path / "notes.json").read_text() == "[1]"
    with pytest.raises(UserError, match="cannot be written"):
        conversation.save(tmp_path / "notes.json" / "c.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a saved conversation"),
        ('{"messages": []}', "not a saved conversation"),
        ('{"messages": [], "settings": {}}', "has no user message"),
        ('{"messages": [{"role": "user", "content": "x"}], "settings": {}}', "ends with a question"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": 3}], "settings": {}}',
            "content of role 'assistant'",
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "settings": {"top": 1}}',
            "unknown setting 'top'",
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "settings": []}',
            "settings must be an object",
        ),
    ],
)
def test_files_that_are_no_conversation(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        ChatSession.load(path)

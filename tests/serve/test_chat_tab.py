import json
import threading
import time

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import CHAT_PARAMS
from nanochat_lit.serve.chat_tab import REFRESH_S, BrowserTab, ChatTab, typed_text

OFF = {"is_markdown": False, "is_scored": False}


def contents(view) -> list[str]:
    return [message["content"] for message in view.messages]


def test_views_of_an_answer(scripted_model) -> None:
    tab = ChatTab(scripted_model(), CHAT_PARAMS)
    first, *_, last = tab.send("  hello ")
    assert (contents(first), first.is_running) == (["hello"], True)
    assert (contents(last), last.is_running) == (["hello", "hello! (seed 0)"], False)
    assert last.status.startswith("2 tokens · ")


def test_an_answer_is_not_drawn_more_often_than_the_page_likes(scripted_model) -> None:
    tab = ChatTab(scripted_model(pause_s=0.001), CHAT_PARAMS)
    started_s = time.perf_counter()
    views = []
    for view in tab.send("endless"):
        views.append(view)
        if time.perf_counter() - started_s > 0.5:
            tab.stop()
    assert 3 <= len(views) <= 0.5 / REFRESH_S + 4
    assert views[-1].status.endswith("stopped")
    assert contents(views[-1])[1].startswith(contents(views[-2])[1])


def test_another_answer_takes_the_place_of_the_one_being_said(scripted_model) -> None:
    model = scripted_model(pause_s=0.005)
    tab = ChatTab(model, CHAT_PARAMS)
    old: list = []
    thread = threading.Thread(target=lambda: old.extend(tab.send("endless")))
    thread.start()
    while not old:
        time.sleep(0.01)
    *_, last = tab.send("hello")
    thread.join(5)
    assert all(view.is_running for view in old), "the old one does not say that all is done"
    assert [message["content"] for message in last.messages if message["role"] == "user"] == ["endless", "hello"]
    assert model.num_running == 0


@pytest.mark.parametrize("act", ["undo", "clear"])
def test_taking_back_ends_the_answer(scripted_model, act: str) -> None:
    model = scripted_model(pause_s=0.005)
    tab = ChatTab(model, CHAT_PARAMS)
    views = tab.send("endless")
    next(views)
    getattr(tab, act)()
    assert list(views) == []
    assert model.num_running == 0
    assert tab.view().messages == []


def test_leaving_ends_the_answer(scripted_model) -> None:
    model = scripted_model()
    views = ChatTab(model, CHAT_PARAMS).send("endless")
    next(views)
    next(views)
    views.close()
    assert model.num_running == 0


def test_edit_finds_the_question_among_folded_calls(scripted_model) -> None:
    model = scripted_model()
    tab = ChatTab(model, CHAT_PARAMS)
    for question in ("a sum", "two", "three"):
        list(tab.send(question))
    shown = contents(tab.view())
    *_, last = tab.edit(tab.index_of_question(shown.index("two")), "zwei")
    assert [message["content"] for message in last.messages if message["role"] == "user"] == ["a sum", "zwei"]


def test_mistakes(scripted_model) -> None:
    tab = ChatTab(scripted_model(), CHAT_PARAMS)
    for act in (lambda: tab.send(" \u2060"), lambda: tab.send("fail"), tab.retry):
        with pytest.raises(UserError):
            list(act())
    with pytest.raises(UserError, match="fell silent"):
        list(tab.send("break"))
    assert contents(tab.view()) == ["break", "half of "]


def test_retry_at_temperature_0_says_that_the_answer_is_the_same(scripted_model) -> None:
    tab = ChatTab(scripted_model(), CHAT_PARAMS)
    list(tab.send("hello"))
    *_, last = tab.retry()
    assert "is identical" not in last.status
    tab.configure({"temperature": 0}, "", **OFF)
    *_, last = tab.retry()
    assert last.status.startswith(
        "the answer is identical at temperature 0; increase it for a different one · 2 tokens"
    )
    *_, last = tab.send("hello")
    assert "is identical" not in last.status


@pytest.mark.parametrize(
    ("settings", "system", "message"),
    [
        ({"seed": 2.5}, "", "seed is 2.5"),
        ({"temperature": True}, "", "temperature is True"),
        ({"heat": 1}, "", "unknown setting 'heat'"),
        ({"seed": 1}, 5, "the system prompt must be text"),
    ],
)
def test_settings_are_checked_before_any_of_them_is_changed(scripted_model, settings, system, message) -> None:
    model = scripted_model()
    tab = ChatTab(model, CHAT_PARAMS)
    tab.configure({"seed": -3, "top_k": None}, " brief ", **OFF)
    with pytest.raises(UserError, match=message):
        tab.configure(settings, system, **OFF)
    list(tab.send("hello"))
    assert model.asked[-1][1].seed == 2**63 - 3
    assert model.asked[-1][0][0] == {"role": "system", "content": "brief"}


@pytest.mark.parametrize("index", [1, 2, -1, "0", None, [0], 1.0])
def test_only_questions_that_are_shown_can_be_edited(scripted_model, index) -> None:
    tab = ChatTab(scripted_model(), CHAT_PARAMS)
    list(tab.send("hello"))
    with pytest.raises(UserError, match="that question was removed"):
        tab.index_of_question(index)
    for text in (None, {"text": "x"}, 3):
        with pytest.raises(UserError, match="the message must be text"):
            list(tab.edit(0, text))
    assert contents(tab.view()) == ["hello", "hello! (seed 0)"]


def last_of(views) -> list:
    *_, last = views
    return last


def test_two_models_answer_at_their_own_pace(scripted_model) -> None:
    tab = BrowserTab([scripted_model(), scripted_model(pause_s=0.02)], CHAT_PARAMS)
    views = list(tab.answering(lambda side: side.send("a sum")))
    assert [typed_text(contents(view)[-1]) for view in views[-1]] == ["42.", "42."]
    assert not any(view.is_running for view in views[-1])
    assert all(any(view.is_running for view in both) for both in views[:-1]), "it runs until both are done"
    last = last_of(tab.edit(1, 0, "hello"))
    assert [contents(view) for view in last] == [["hello", "hello! (seed 1)"]] * 2
    assert tab.undo() == "hello"
    assert [view.messages for view in tab.views()] == [[], []]


def test_a_slow_page_is_not_behind(scripted_model) -> None:
    """Views after a pause are as new as the answer."""
    tab = BrowserTab([scripted_model(pause_s=0.002), scripted_model(pause_s=0.002)], CHAT_PARAMS)
    views = tab.answering(lambda side: side.send("endless"))
    next(views)
    for _ in range(3):
        time.sleep(0.3)
        lengths = [len(contents(view)[-1]) for view in tab.views()]
        shown = [len(contents(view)[-1]) for view in next(views)]
        assert all(length > 0.5 * newest for length, newest in zip(shown, lengths, strict=True))
    views.close()


def test_one_of_two_models_fails(scripted_model) -> None:
    class Broken(scripted_model):
        def answer(self, *_):
            raise UserError("no server")

    tab = BrowserTab([scripted_model(), Broken()], CHAT_PARAMS)
    with pytest.raises(UserError, match="no server"):
        list(tab.answering(lambda side: side.send("hello")))
    assert [contents(view) for view in tab.views()] == [["hello", "hello! (seed 0)"], []]
    with pytest.raises(UserError, match="that question was removed"):
        list(tab.edit(0, 0, "other"))
    tab.undo()
    with pytest.raises(UserError, match="the conversation is empty"):
        tab.undo()


def test_leaving_ends_both_answers(scripted_model) -> None:
    models = [scripted_model(pause_s=0.005), scripted_model(pause_s=0.005)]
    views = BrowserTab(models, CHAT_PARAMS).answering(lambda side: side.send("endless"))
    next(views)
    views.close()
    deadline_s = time.monotonic() + 5
    while any(model.num_running for model in models):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_stored_conversation_continues(scripted_model) -> None:
    model = scripted_model()
    tab = BrowserTab([model], CHAT_PARAMS)
    assert tab.saved() == "", "nothing to store yet"
    tab.sides[0].configure({"temperature": 0.25}, "brief", **OFF)
    list(tab.answering(lambda side: side.send("a sum")))
    text = tab.saved()
    other = BrowserTab([model, model], CHAT_PARAMS)  # one conversation becomes two
    other.open(text)
    other.sides[1].is_markdown = False
    assert other.views()[1].messages == tab.views()[0].messages
    list(other.answering(lambda side: side.send("next")))
    messages, settings = model.asked[-1]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert settings.temperature == 0.25
    saved = json.loads(other.saved())
    assert (saved["id"], len(saved["chats"])) == (json.loads(text)["id"], 2)
    other.clear()
    assert other.saved() == ""


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "[" * 100_000, "null", '{"id": "a"}', '{"id": 3, "chats": [{}]}', '{"id": "a", "chats": []}'),
        *('{"id": "a", "chats": [3]}', '{"id": "a", "chats": [{"messages": [], "settings": {}}]}', None, 3),
    ],
    ids=lambda text: str(text)[:20],
)
def test_what_is_no_stored_conversation_changes_nothing(scripted_model, text) -> None:
    tab = BrowserTab([scripted_model()], CHAT_PARAMS)
    list(tab.answering(lambda side: side.send("hello")))
    before = tab.saved()
    with pytest.raises(UserError, match="stored conversation"):
        tab.open(text)
    assert tab.saved() == before


def test_probabilities_are_requested_only_if_shown(scripted_model) -> None:
    tab = ChatTab(scripted_model(), CHAT_PARAMS)
    assert last_of(tab.send("hello")).tokens == ""
    tab.configure({}, "", is_markdown=True, is_scored=True)
    assert "60.7%" in last_of(tab.send("hello")).tokens

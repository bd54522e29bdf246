import threading
import time

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import CHAT_PARAMS
from nanochat_lit.serve.chat_tab import REFRESH_S, ChatTab


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
    *_, last = tab.edit(shown.index("two"), "zwei")
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
    tab.configure({"temperature": 0}, "")
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
    tab.configure({"seed": -3, "top_k": None}, " brief ")
    with pytest.raises(UserError, match=message):
        tab.configure(settings, system)
    list(tab.send("hello"))
    assert model.asked[-1][1].seed == 2**63 - 3
    assert model.asked[-1][0][0] == {"role": "system", "content": "brief"}


@pytest.mark.parametrize("index", [1, 2, -1, "0", None, [0], 1.0])
def test_only_questions_that_are_shown_can_be_edited(scripted_model, index) -> None:
    tab = ChatTab(scripted_model(), CHAT_PARAMS)
    list(tab.send("hello"))
    with pytest.raises(UserError, match="that question was removed"):
        list(tab.edit(index, "other"))
    for text in (None, {"text": "x"}, 3):
        with pytest.raises(UserError, match="the message must be text"):
            list(tab.edit(0, text))
    assert contents(tab.view()) == ["hello", "hello! (seed 0)"]

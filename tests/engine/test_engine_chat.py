"""The engine's thread: the answers of the engine alone, several at once, ended at any moment."""

import threading
from collections.abc import Callable

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.engine_chat import EngineChat
from nanochat_lit.engine.sampling_params import Request, SamplingParams
from nanochat_lit.engine.scheduler import Scheduler
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

SETTINGS = SamplingParams(temperature=0.9, top_k=0, max_new_tokens=20)


def question(number: int) -> list[dict]:
    return [{"role": "user", "content": f"say {number}"}]


@pytest.fixture
def engine(random_model: Callable[..., GPT], tokenizer: Tokenizer) -> Engine:
    return Engine(random_model(sequence_len=96), tokenizer, num_slots=2)


def test_several_conversations_at_once(engine: Engine, tokenizer: Tokenizer) -> None:
    """More than there are slots; each hears what the engine alone would have said."""
    expected = []
    for number in range(5):
        prompt = render_for_completion(tokenizer, {"messages": question(number)})
        (token_ids,) = engine.generate(prompt, max_new_tokens=20, temperature=0.9, seed=number)
        expected.append(token_ids)
    heard: dict[int, str] = {}
    counts: dict[int, int | None] = {}
    with EngineChat(engine) as model:

        def listen(number: int) -> None:
            answer = model.answer(question(number), SETTINGS.changed("seed", number))
            heard[number] = "".join(piece.text for piece in answer.pieces)
            counts[number] = answer.num_tokens

        threads = [threading.Thread(target=listen, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    special = set(tokenizer.special_ids.values())
    for number, token_ids in enumerate(expected):
        assert counts[number] == len(token_ids)
        if not special & set(token_ids):
            assert heard[number] == tokenizer.decode(token_ids)
    assert engine.num_free == 2


def test_stopped_answers_free_their_slots(engine: Engine) -> None:
    endless = SamplingParams(temperature=0.9, max_new_tokens=10_000)
    with EngineChat(engine) as model:
        answers = [model.answer(question(number), endless) for number in range(4)]  # two of them wait
        pieces = [answer.pieces for answer in answers]
        next(pieces[0])
        for answer in answers:
            answer.stop()
            answer.stop()
        assert all(len(list(rest)) < 90 for rest in pieces)
        after = model.answer(question(9), SETTINGS)
        assert list(after.pieces)
        assert 0 < after.elapsed_s < 60
        assert after.finish_reason in ("stop", "length")
    assert engine.num_free == 2


def test_leaving_ends_what_is_being_said(engine: Engine) -> None:
    with EngineChat(engine) as model:
        pieces = model.answer(question(0), SamplingParams(max_new_tokens=10_000)).pieces
    list(pieces)  # does not wait for ever
    with pytest.raises(UserError, match="has stopped"):
        model.answer(question(0), SETTINGS)
    assert engine.num_free == 2


def test_mistakes_are_told_at_once(engine: Engine) -> None:
    with EngineChat(engine) as model, pytest.raises(UserError, match="context is 96"):
        model.answer([{"role": "user", "content": "word " * 100}], SETTINGS)


def test_no_more_wait_than_may(engine: Engine) -> None:
    endless = SamplingParams(temperature=0.9, max_new_tokens=10_000)
    with EngineChat(engine, max_queue=1) as model:
        answers = [model.answer(question(number), endless) for number in range(40)]
        with pytest.raises(UserError, match="too many requests are queued"):
            [next(answer.pieces) for answer in answers]


def test_a_failure_is_told_to_those_who_wait_and_the_next_question_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with EngineChat(engine) as model:
        expected = [piece.text for piece in model.answer(question(0), SETTINGS).pieces]
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_decode", lambda: 1 / 0)
            for _ in range(3):
                with pytest.raises(UserError, match="the engine failed \\(ZeroDivisionError"):
                    list(model.answer(question(0), SETTINGS).pieces)
        assert [piece.text for piece in model.answer(question(0), SETTINGS).pieces] == expected
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert engine.num_free == 2
    with pytest.raises(UserError, match="the engine has stopped"):
        model.answer(question(0), SETTINGS)


def test_an_answer_that_is_not_finite_is_an_error(engine: Engine) -> None:
    for parameter in engine.model.parameters():
        parameter.data.fill_(float("nan"))
    with EngineChat(engine) as model, pytest.raises(UserError, match="not finite"):
        list(model.answer(question(0), SETTINGS).pieces)
    with pytest.raises(UserError, match="not finite"):
        engine.generate([engine.tokenizer.bos_id])
    assert engine.num_free == 2


def test_scores_are_the_engine_s(engine: Engine, tokenizer: Tokenizer) -> None:
    """The most likely alternatives of every token, and the same answer as without them."""
    prompt = render_for_completion(tokenizer, {"messages": question(1)})
    request = Request(prompt_ids=prompt, logprobs=True, top_logprobs=3, **vars(SETTINGS))
    scheduler = Scheduler(engine, 1)
    scheduler.submit(0, request)
    expected = []
    while scheduler.has_work:
        expected += [event.emitted for event in scheduler.step()]
    with EngineChat(engine) as model:
        plain = model.answer(question(1), SETTINGS)
        text = "".join(piece.text for piece in plain.pieces)
        assert plain.scores == []
        answer = model.answer(question(1), SETTINGS, 3)
        assert "".join(piece.text for piece in answer.pieces) == text
    assert [score.logprob for score in answer.scores] == [one.logprob for one in expected if one.logprob is not None]
    assert all(len(score.top) == 3 for score in answer.scores)
    for score, one in zip(answer.scores, expected, strict=True):
        if one.token_id not in tokenizer.special_ids.values():
            assert score.text == tokenizer.bytes_of(one.token_id).decode("utf-8", "replace")

"""The page's client against the real server: the same conversation as with the engine in this process."""

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.chat_session import ChatSession
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.engine_chat import EngineChat
from nanochat_lit.engine.export import load_export
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.client import ServerChat


def converse(model, num_turns: int) -> list[dict]:
    conversation = ChatSession(settings=SamplingParams(temperature=0.8, max_new_tokens=12, seed=3), system="be brief")
    for turn in range(num_turns):
        list(conversation.ask(model, f"question {turn}"))
    return conversation.messages


def test_the_same_conversation_as_in_this_process(server, make_export) -> None:
    gpt, tokenizer = load_export(make_export(), "cpu", "float32", cast_weights=True)
    with EngineChat(Engine(gpt, tokenizer, num_slots=1)) as model:
        expected = converse(model, 3)
    assert converse(ServerChat(server.url, "secret"), 3) == expected


def test_a_conversation_longer_than_the_context(server) -> None:
    model = ServerChat(server.url, "secret")
    conversation = ChatSession(settings=SamplingParams(temperature=0.8, max_new_tokens=8))
    dropped = []
    for turn in range(12):
        assert list(conversation.ask(model, f"{turn} " + "what is 3 times 4? " * 4)) is not None
        dropped.append(conversation.answer.num_dropped_turns)
    assert dropped[0] == 0
    assert dropped[-1] > 0
    with pytest.raises(UserError, match="context is 512"):
        conversation.ask(model, "what is 3 times 4? " * 200)
    with pytest.raises(UserError, match="key"):
        ServerChat(server.url, "wrong")

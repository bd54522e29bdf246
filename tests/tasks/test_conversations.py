"""Conversations of files, SmolTalk's and one's own; questions of identity."""

import json
from collections import Counter

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversations, Task, TaskMixture, TaskSlice
from nanochat_lit.tasks.conversations import FileConversations
from nanochat_lit.tasks.gsm8k import GSM8K
from nanochat_lit.tasks.identity import QUESTIONS, Identity
from nanochat_lit.tasks.smoltalk import SmolTalk
from nanochat_lit.tokenizer.chat import validate_conversation

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "source": "me"}


@pytest.mark.parametrize("kind", [FileConversations, lambda path: SmolTalk(path=path)])
def test_files(kind, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    conversations = kind(path)
    assert isinstance(conversations, Conversations)
    assert not isinstance(conversations, Task)
    assert len(conversations) == 1
    assert conversations[0]["messages"] == GOOD["messages"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hi"}, "expected"),
        ({"messages": []}, "no user message"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "role 'assistant', expected 'user'"),
    ],
)
def test_a_malformed_line_is_named(row, message, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"chat.jsonl:2: not a conversation: .*{message}"):
        FileConversations(path)


def test_a_mixture_of_real_conversations(shared):
    chat = TaskSlice(FileConversations(shared / "data/sft/train.jsonl"), 0, 100)
    problems = TaskSlice(GSM8K("train", shared / "data/gsm8k/train.jsonl"), 0, 25)
    mixture = TaskMixture({"chat": chat, "gsm8k": problems}, repeats={"gsm8k": 4})
    assert Counter(conversation["source"] for conversation in mixture) == {"chat": 100, "gsm8k": 100}
    for conversation in mixture:
        validate_conversation(conversation)


def test_identity():
    task = Identity("Ada")
    assert isinstance(task, Task)
    assert len(task) == len(QUESTIONS)
    for place in range(len(task)):
        conversation = task[place]
        assert task.evaluate(conversation, conversation["messages"][-1]["content"])
        assert task.evaluate(conversation, "I'm ada!")
        assert not task.evaluate(conversation, "I am Adam.")
        assert not task.evaluate(conversation, "I am Claude, not Ada.")
    asked = next(c for c in map(task.__getitem__, range(len(task))) if "ChatGPT" in c["messages"][0]["content"])
    assert task.evaluate(asked, "No, I am not ChatGPT, I am Ada.")

"""Letters: questions made from their numbers; answers that the calculator confirms; a strict judge."""

import re

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.tasks.base import Task
from nanochat_lit.tasks.spelling import CountLetters, SpellWord
from nanochat_lit.tokenizer.chat import validate_conversation

TASKS = [CountLetters, SpellWord]


def test_words_are_plain_and_each_once():
    words = SpellWord().words
    assert len(set(words)) == len(words) > 200
    assert words == sorted(words)
    assert all(re.fullmatch("[a-z]{4,}", word) for word in words)


@pytest.mark.parametrize("kind", TASKS)
def test_questions_depend_on_their_number_alone(kind):
    small, large = kind(10), kind(1000)
    assert [small[place] for place in range(10)] == [large[place] for place in range(10)]
    assert small[-1] == small[9]
    assert len({str(large[place]) for place in range(1000)}) > 300
    with pytest.raises(IndexError):
        small[10]


@pytest.mark.parametrize("kind", TASKS)
def test_splits_differ(kind):
    train, test = kind(50, "train"), kind(50, "test")
    assert sum(train[place] == test[place] for place in range(50)) < 5


def test_the_tool_counts_what_the_answer_says():
    task = CountLetters(300)
    assert isinstance(task, Task)
    counts = set()
    for place in range(len(task)):
        conversation = task[place]
        validate_conversation(conversation)
        text, call, output, end = (part["text"] for part in conversation["messages"][-1]["content"])
        word, letter = re.fullmatch(r"'(\w+)'\.count\('(\w)'\)", call).groups()
        assert calculate(call) == output == str(conversation["count"])
        assert end == f"\n#### {output}"
        assert ",".join(word) in text
        question = conversation["messages"][0]["content"]
        assert word in question
        assert letter in question
        assert task.evaluate(conversation, text + end)
        assert not task.evaluate(conversation, text + f"\n#### {conversation['count'] + 1}")
        assert not task.evaluate(conversation, text)
        counts.add(conversation["count"])
    assert counts >= {0, 1, 2, 3}


def test_spellings_are_judged_letter_by_letter():
    task = SpellWord(300)
    assert isinstance(task, Task)
    for place in range(len(task)):
        conversation = task[place]
        answer = conversation["messages"][-1]["content"]
        word = answer.split(":")[0]
        assert word in conversation["messages"][0]["content"]
        for right in (answer, f"{word}: {' '.join(word)}", "-".join(word).upper() + "."):
            assert task.evaluate(conversation, right)
        for wrong in ("", word, f"{word}: {','.join(word[1:])}", f"{word}: {','.join(word)},{word[-1]}"):
            assert not task.evaluate(conversation, wrong)


@pytest.mark.parametrize("kind", TASKS)
def test_own_words(kind, tmp_path):
    (tmp_path / "words.txt").write_text("Zyzzyva\n\nqueue\n")
    task = kind(40, path=tmp_path / "words.txt")
    questions = [task[place]["messages"][0]["content"] for place in range(40)]
    assert all("zyzzyva" in question or "queue" in question for question in questions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"split": "val"}, "split is 'val'; use one of train, test"),
        ({"path": "{folder}/none.txt"}, "none.txt: cannot be read"),
        ({"path": "{folder}/two.txt"}, "two.txt:2: 'not a word' is not a word"),
        ({"path": "{folder}/empty.txt"}, "empty.txt: has no words"),
    ],
)
def test_mistakes(arguments, message, tmp_path):
    (tmp_path / "two.txt").write_text("word\nnot a word\n")
    (tmp_path / "empty.txt").write_text("\n")
    filled = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in arguments.items()}
    with pytest.raises(UserError, match=message):
        CountLetters(**filled)

"""Slices and mixtures: what is in them, how often, in which order."""

from collections import Counter

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import (
    Conversations,
    Task,
    TaskMixture,
    TaskSlice,
    gives_credit,
    multiple_choice_conversation,
)


class Numbered:
    """Conversations that say their own number; the right answer is the number."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(index)}]}


class Judged(Numbered):
    def evaluate(self, conversation, completion, tool_calls=()):
        return completion == conversation["messages"][-1]["content"]


def answers(conversations):
    return [conversation["messages"][-1]["content"] for conversation in conversations]


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(None, None, 1), (2, 9, 3), (-3, None, 1), (None, -8, 1), (5, 99, 2)]
)
def test_a_slice_is_that_of_a_list(start, stop, step):
    part = TaskSlice(Judged(10), start, stop, step)
    expected = [str(number) for number in range(10)][start:stop:step]
    assert answers(part) == expected
    assert answers(part[place] for place in range(len(part))) == expected


def test_a_slice_judges_as_the_whole():
    part = TaskSlice(Judged(10), 4, 6)
    assert isinstance(part, Task)
    assert part.evaluate(part[1], "5")
    assert not part.evaluate(part[1], "4")


def test_what_cannot_judge_can_be_sliced_and_learnt_from():
    part = TaskSlice(Numbered(10), 4, 6)
    assert isinstance(part, Conversations)
    assert answers(part) == ["4", "5"]
    with pytest.raises(UserError, match="Numbered has no evaluate method"):
        part.evaluate(part[0], "4")


@pytest.mark.parametrize(
    ("arguments", "message"), [((5, 5), "5:5:1 .* 10 conversations"), ((0, 5, 0), "step of a slice is 0")]
)
def test_impossible_slices(arguments, message):
    with pytest.raises(UserError, match=message):
        TaskSlice(Judged(10), *arguments)


def test_a_mixture_holds_every_conversation_as_often_as_asked():
    mixture = TaskMixture({"a": Numbered(30), "b": Numbered(7)}, repeats={"b": 3})
    assert len(mixture) == 30 + 3 * 7
    counted = Counter((c["source"], c["messages"][-1]["content"]) for c in mixture)
    assert counted == Counter({**{("a", str(i)): 1 for i in range(30)}, **{("b", str(i)): 3 for i in range(7)}})


def test_the_order_of_a_mixture_depends_on_the_seed_alone():
    def order(seed):
        mixture = TaskMixture({"a": Numbered(50), "b": Numbered(50)}, seed=seed)
        return [(c["source"], c["messages"][-1]["content"]) for c in mixture]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_the_sources_of_a_mixture_are_spread_evenly():
    mixture = TaskMixture({"a": Numbered(3000), "b": Numbered(1000)})
    for start in range(0, 4000, 500):
        share = sum(mixture[place]["source"] == "b" for place in range(start, start + 500)) / 500
        assert 0.25 - 0.08 < share < 0.25 + 0.08  # four standard deviations


class Graded(Judged):
    def credit(self, conversation, completion, tool_calls=()):
        return 0.5


def test_answers_to_a_mixture_are_judged_by_their_source():
    mixture = TaskMixture({"a": Judged(9), "b": TaskSlice(Graded(9), 3), "c": Numbered(9)})
    assert isinstance(mixture, Task)
    for conversation in mixture:
        answer = conversation["messages"][-1]["content"]
        if conversation["source"] == "c":
            with pytest.raises(UserError, match="c has no evaluate method"):
                mixture.evaluate(conversation, answer)
            continue
        assert mixture.evaluate(conversation, answer)
        assert not mixture.evaluate(conversation, answer + "0")
        assert mixture.credit(conversation, answer) == (0.5 if conversation["source"] == "b" else 0.0)
    assert gives_credit(mixture)
    assert not gives_credit(TaskMixture({"a": TaskSlice(Judged(9), 3)}))


@pytest.mark.parametrize(
    ("tasks", "repeats", "message"),
    [
        ({}, None, "no tasks"),
        ({"a": Numbered(3)}, {"b": 2}, "repeats contains b, but the tasks are a"),
        ({"a": Numbered(3)}, {"a": 0}, "repeats of a is 0"),
        ({"a": Numbered(3)}, {"a": 1.5}, "repeats of a is 1.5"),
    ],
)
def test_impossible_mixtures(tasks, repeats, message):
    with pytest.raises(UserError, match=message):
        TaskMixture(tasks, repeats)


def test_the_prompt_of_a_categorical_question():
    expected = "Multiple Choice question: What is red?\n- a rose=A\n- the sea=B\n\nRespond only with the letter of the correct answer."
    conversation = multiple_choice_conversation("What is red?", ["a rose", "the sea"], ["A", "B"], "A")
    assert [message["content"] for message in conversation["messages"]] == [expected, "A"]
    assert conversation["letters"] == ["A", "B"]

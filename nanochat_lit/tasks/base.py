"""What every task offers, parts of a task, and mixtures of several.

A task is a sequence of conversations. Training reads them; evaluation drops the last answer, asks a model for it, and lets
the task judge. A task whose answer is one of a few letters says so with `letters` in its conversations: then the model's
logits of those letters decide, and nothing has to be generated. A task whose answers have a form of their own says in
`instruction` how a model would be asked for it that has not been fine-tuned on the task.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Protocol, runtime_checkable

from nanochat_lit.common.errors import UserError

Conversation = dict[str, Any]


@runtime_checkable
class Conversations(Protocol):
    """A sequence of conversations: what training needs."""

    def __len__(self) -> int:
        """How many conversations there are."""
        ...

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at this place: {"messages": [...], ...}."""
        ...


@runtime_checkable
class Task(Conversations, Protocol):
    """A sequence of conversations whose last answer can be judged."""

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Whether the completion, with the tool calls made for it, is a right answer to the conversation."""
        ...


@runtime_checkable
class FormTask(Task, Protocol):
    """A task that also knows what an answer to it looks like, right or wrong."""

    def has_form(self, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Whether the completion, with the tool calls made for it, looks like an answer."""
        ...


@runtime_checkable
class GradedTask(Task, Protocol):
    """A task that also knows how near a wrong answer has come: a slope where right answers are too rare to be found."""

    def credit(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> float:
        """From 0 to 1, for an answer that is wrong."""
        ...


class TaskSlice:
    """Some conversations of a task, as Python slices a list.

    Args:
        task: The whole; one that cannot judge gives a slice that can only be learnt from.
        start: First place; None is the beginning.
        stop: Place after the last; None is the end.
        step: Distance between places.

    Raises:
        UserError: If nothing is left, or the step is below 1.
    """

    def __init__(self, task: Conversations, start: int | None = None, stop: int | None = None, step: int = 1) -> None:
        if step < 1:
            raise UserError(f"the step of a slice is {step}; it must be at least 1")
        self.task = task
        self.places = range(*slice(start, stop, step).indices(len(task)))
        if not self.places:
            raise UserError(f"the slice {start}:{stop}:{step} of a task with {len(task)} conversations holds none")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Conversation:
        return self.task[self.places[index]]

    def __iter__(self) -> Iterator[Conversation]:
        return (self.task[place] for place in self.places)

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """As the whole task judges.

        Raises:
            UserError: If it cannot.
        """
        return _judging(self.task, type(self.task).__name__).evaluate(conversation, completion, tool_calls)

    def credit(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> float:
        """As the whole task says; 0 if it does not."""
        return _credit(self.task, conversation, completion, tool_calls)


def _judging(task: Conversations, name: str) -> Task:
    """The task, which must be able to judge answers."""
    if not isinstance(task, Task):
        raise UserError(f"{name} has conversations to learn from and nothing to judge them by")
    return task


def _credit(task: Conversations, conversation: Conversation, completion: str, tool_calls: Sequence[str]) -> float:
    return task.credit(conversation, completion, tool_calls) if isinstance(task, GradedTask) else 0.0


def gives_credit(task: Conversations) -> bool:
    """Whether a task, what it is a slice of, or one that it mixes knows how near wrong answers come.

    Args:
        task: Any task.
    """
    if isinstance(task, TaskSlice):
        return gives_credit(task.task)
    if isinstance(task, TaskMixture):
        return any(map(gives_credit, task.tasks.values()))
    return isinstance(task, GradedTask)


def form_of(task: Conversations) -> FormTask | None:
    """The task itself, or that of which it is a slice, if it knows what an answer looks like.

    Args:
        task: Any task.
    """
    whole = task.task if isinstance(task, TaskSlice) else task
    return whole if isinstance(whole, FormTask) else None


class TaskMixture:
    """Several tasks as one, every conversation as often as its task is repeated, in an order drawn from the seed.

    The conversations of all tasks are spread evenly, so that training meets every source all the time. The same tasks,
    repeats and seed give the same order everywhere. An answer is judged by the task that its conversation comes from.

    Args:
        tasks: The sources by name.
        repeats: How often each is read; sources that are not named are read once.
        seed: Of the order.

    Raises:
        UserError: If no source is given, a name is unknown, or a repeat is not a whole number of at least 1.
    """

    def __init__(self, tasks: dict[str, Conversations], repeats: dict[str, int] | None = None, seed: int = 42) -> None:
        repeats = repeats or {}
        if not tasks:
            raise UserError("the mixture has no tasks; give at least one")
        if unknown := sorted(set(repeats) - set(tasks)):
            raise UserError(f"repeats names {', '.join(unknown)}, but the tasks are {', '.join(tasks)}")
        self.tasks = tasks
        self.repeats = {name: repeats.get(name, 1) for name in tasks}
        for name, times in self.repeats.items():
            if not isinstance(times, int) or isinstance(times, bool) or times < 1:
                raise UserError(f"repeats of {name} is {times!r}; use a whole number of at least 1")
        self._names = list(tasks)
        places = array("q")  # two numbers in one, task * 2^40 + place: a million conversations take 8 MB
        for number, (name, task) in enumerate(tasks.items()):
            for _ in range(self.repeats[name]):
                places.extend(range(number << 40, (number << 40) + len(task)))
        Random(seed).shuffle(places)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def source(self, index: int) -> str:
        """Name of the task that the conversation at this place comes from."""
        return self._names[self._places[index] >> 40]

    def __getitem__(self, index: int) -> Conversation:
        code = self._places[index]
        return {**self.tasks[self._names[code >> 40]][code & (1 << 40) - 1], "source": self._names[code >> 40]}

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """As the task judges that the conversation comes from.

        Raises:
            UserError: If it cannot.
        """
        name = conversation["source"]
        return _judging(self.tasks[name], name).evaluate(conversation, completion, tool_calls)

    def credit(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> float:
        """As the task says that the conversation comes from; 0 if it does not."""
        return _credit(self.tasks[conversation["source"]], conversation, completion, tool_calls)

    def counts(self) -> dict[str, int]:
        """Conversations of each source, repeats included."""
        return {name: self.repeats[name] * len(task) for name, task in self.tasks.items()}


def multiple_choice_prompt(question: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """The question of a categorical task; the letter comes after its choice, so that it follows what it stands for.

    Args:
        question: What is asked.
        choices: Possible answers.
        letters: One for each choice.
    """
    lines = [f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True)]
    return (
        f"Multiple Choice question: {question}\n{''.join(lines)}\nRespond only with the letter of the correct answer."
    )


def multiple_choice_conversation(
    question: str, choices: Sequence[str], letters: Sequence[str], answer: str
) -> Conversation:
    """A categorical question with its right letter.

    Args:
        question: What is asked.
        choices: Possible answers.
        letters: One for each choice.
        answer: The right letter.

    Returns:
        {"messages", "letters"}.
    """
    assert answer in letters, f"the answer {answer!r} is not among the letters {letters}"
    return {
        "messages": [
            {"role": "user", "content": multiple_choice_prompt(question, choices, letters)},
            {"role": "assistant", "content": answer},
        ],
        "letters": list(letters),
    }

"""Task protocols, slices and mixtures.

A task is a sequence of conversations. Training uses them as they are; evaluation removes the last answer, generates
one, and calls the task's `evaluate`. In a multiple-choice task, conversations have `letters`: the letter with the
highest logit is the answer, without generation. A task with a specific answer format describes it in `instruction`, for
models that were not fine-tuned on the task.
"""

from array import array
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol, runtime_checkable

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.chat import Conversation


@runtime_checkable
class Conversations(Protocol):
    """A sequence of conversations for training."""

    def __len__(self) -> int:
        """Return the number of conversations."""
        ...

    def __getitem__(self, index: int) -> Conversation:
        """Return a conversation: {"messages": [...], ...}."""
        ...


@runtime_checkable
class Task(Conversations, Protocol):
    """A sequence of conversations whose last answer can be evaluated.

    It may have further methods, which take the same arguments (the first one without the conversation): `has_form`
    returns whether an answer is in the task's format, right or wrong; `credit` the partial credit of a wrong answer, from
    0 to 1, a denser reward when correct answers are rare; `grade` a number that is higher for the better of two answers.
    """

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion, with its tool calls, answers the conversation correctly."""
        ...


class TaskSlice:
    """A slice, never empty, of a task (for training only, if it has no `evaluate`), with the semantics of list slices."""

    def __init__(self, task: Conversations, start: int | None = None, stop: int | None = None, step: int = 1) -> None:
        if step < 1:
            raise UserError(f"the step of a slice is {step}; it must be at least 1")
        self.task = task
        self.places = range(*slice(start, stop, step).indices(len(task)))
        if not self.places:
            raise UserError(f"the slice {start}:{stop}:{step} of a task with {len(task)} conversations is empty")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Conversation:
        return self.task[self.places[index]]

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Evaluate with the underlying task; UserError if it has no `evaluate`."""
        return _judging(self.task, type(self.task).__name__).evaluate(conversation, completion, tool_calls)

    def credit(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> float:
        """Return the partial credit of the underlying task; 0 if it defines none."""
        return credit_of(self.task, conversation, completion, tool_calls)


def _judging(task: Conversations, name: str) -> Task:
    if not isinstance(task, Task):
        raise UserError(f"{name} has no evaluate method; it can be used only for training")
    return task


def credit_of(task: Any, conversation: Conversation, completion: str, tool_calls: Sequence[str]) -> float:
    """Return the partial credit of an answer; 0 if the task defines none."""
    return task.credit(conversation, completion, tool_calls) if hasattr(task, "credit") else 0.0


def gives_credit(task: Conversations) -> bool:
    """Return whether a task, its underlying task or a member of its mixture defines partial credit."""
    if isinstance(task, TaskSlice):
        return gives_credit(task.task)
    if isinstance(task, TaskMixture):
        return any(map(gives_credit, task.tasks.values()))
    return hasattr(task, "credit")


def form_of(task: Any) -> Any:
    """Return the task or the task it slices if it defines an answer format, by a method `has_form`, else None."""
    whole = task.task if isinstance(task, TaskSlice) else task
    return whole if hasattr(whole, "has_form") else None


def grader_of(task: Any) -> Callable[[Conversation, str, Sequence[str]], float] | None:
    """Return the `grade`, else the `evaluate`, of the task or the task it slices; None if it cannot evaluate answers."""
    whole = task.task if isinstance(task, TaskSlice) else task
    return getattr(whole, "grade", None if isinstance(whole, TaskMixture) else getattr(whole, "evaluate", None))


class TaskMixture:
    """A mixture of tasks with repeats, in a seeded order.

    The conversations of each task are spread evenly over the mixture. The order depends only on the tasks, repeats and
    seed. An answer is evaluated by the task of its conversation.

    Args:
        tasks: The sources by name.
        repeats: Passes over each source, by name. Default 1.
        seed: Seed of the order.

    Raises:
        UserError: If there are no tasks, a name is unknown, or a repeat is not a positive integer.
    """

    def __init__(self, tasks: dict[str, Conversations], repeats: dict[str, int] | None = None, seed: int = 42) -> None:
        repeats = repeats or {}
        if not tasks:
            raise UserError("the mixture has no tasks; give at least one")
        if unknown := sorted(set(repeats) - set(tasks)):
            raise UserError(f"repeats contains {', '.join(unknown)}, but the tasks are {', '.join(tasks)}")
        self.tasks = tasks
        self.repeats = {name: repeats.get(name, 1) for name in tasks}
        for name, times in self.repeats.items():
            if not isinstance(times, int) or isinstance(times, bool) or times < 1:
                raise UserError(f"repeats of {name} is {times!r}; use an integer of at least 1")
        self._names = list(tasks)
        places = array("q")  # packed as task * 2^40 + index: a million conversations take 8 MB
        for number, (name, task) in enumerate(tasks.items()):
            for _ in range(self.repeats[name]):
                places.extend(range(number << 40, (number << 40) + len(task)))
        Random(seed).shuffle(places)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Conversation:
        code = self._places[index]
        return {**self.tasks[self._names[code >> 40]][code & (1 << 40) - 1], "source": self._names[code >> 40]}

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Evaluate with the task of the conversation; UserError if it has no `evaluate`."""
        name = conversation["source"]
        return _judging(self.tasks[name], name).evaluate(conversation, completion, tool_calls)

    def credit(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> float:
        """Return the partial credit of the conversation's task; 0 if it defines none."""
        return credit_of(self.tasks[conversation["source"]], conversation, completion, tool_calls)


def multiple_choice_conversation(
    question: str, choices: Sequence[str], letters: Sequence[str], answer: str
) -> Conversation:
    """Return a multiple-choice question with its correct letter; each letter follows its choice, so that it can attend to it."""
    assert answer in letters, f"the answer {answer!r} is not among the letters {letters}"
    lines = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True))
    prompt = f"Multiple Choice question: {question}\n{lines}\nRespond only with the letter of the correct answer."
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "letters": list(letters)}

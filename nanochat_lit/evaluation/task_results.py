"""Results of an evaluation task by task, kept in a file so that a killed evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nanochat_lit.common.distributed import rank
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.evaluation.ranks import from_rank_zero


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What came out of one task."""

    label: str
    """Name of the task."""
    kind: str
    """How it is asked and judged."""
    num_fewshot: int
    """Solved examples before each question."""
    correct: list[int]
    """Right samples of each example, in the order of the task; 0 or 1 where each is asked once."""
    num_samples: int
    """Samples of each example."""
    num_cut: int
    """Examples that did not fit the context whole."""
    seconds: float
    """Wall-clock time, loading of the model left out."""
    num_formed: int | None = None
    """Samples that have the form of an answer, right or wrong; None where the task does not know its form."""

    @property
    def accuracy(self) -> float:
        """Share of right samples."""
        return sum(self.correct) / (len(self.correct) * self.num_samples)

    @property
    def format_rate(self) -> float | None:
        """Share of samples that have the form of an answer."""
        return None if self.num_formed is None else self.num_formed / (len(self.correct) * self.num_samples)


class ResultsFile:
    """The finished tasks of one evaluation; every change replaces the file as a whole, so a kill leaves it readable.

    Args:
        path: The JSON file; None keeps nothing.
        key: What the results depend on: model, data, settings. A file with another key is begun anew.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.path = path
        self.key = dict(key)
        self.results: dict[str, TaskResult] = {}
        self.replaces_other = False
        """Whether the file holds the results of another evaluation, which the first new result will replace."""
        if path is None or not path.exists():
            return
        try:
            content = read_json(path)
            results = {entry["label"]: TaskResult(**entry) for entry in content["tasks"]}
            if content["key"] == self.key:
                self.results = results
            self.replaces_other = content["key"] != self.key
        except (UserError, KeyError, TypeError):
            self.replaces_other = True

    def add(self, result: TaskResult) -> None:
        """Keep the result of a finished task."""
        self.results[result.label] = result
        if self.path is not None:
            tasks = [asdict(entry) for entry in self.results.values()]
            write_json(self.path, {"key": self.key, "tasks": tasks})

    def remove(self) -> None:
        """Delete the file: the evaluation is finished, and the next one measures anew."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Labelled(Protocol):
    """A task with a name."""

    @property
    def label(self) -> str:
        """The name, which no other task of the evaluation has."""
        ...


T = TypeVar("T", bound=Labelled)


def measure_tasks(
    tasks: Sequence[T],
    measure: Callable[[T], TaskResult],
    results: ResultsFile | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Measure the tasks that are not finished; every rank of a process group calls this, and all get all results.

    Args:
        tasks: In the order of the results.
        measure: Gives a task's result, on every rank.
        results: Of an earlier evaluation that was killed; takes the new ones. Only rank 0's counts.
        on_task: Called on rank 0 when a task is done, or was done already.
    """
    results = results or ResultsFile(None, {})
    finished: dict[str, TaskResult] = from_rank_zero(results.results)
    outcome = []
    for task in tasks:
        result = finished.get(task.label)
        if result is None:
            result = measure(task)
            if rank() == 0:
                results.add(result)
        if on_task is not None and rank() == 0:
            on_task(result)
        outcome.append(result)
    return outcome


def digest(value: Any) -> str:
    """A short fingerprint of plain data.

    Args:
        value: Anything that JSON can hold.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short fingerprint of a file's bytes.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()[:16]

"""Results of an evaluation per task, stored in a file so that an interrupted evaluation can resume."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_lit.common.distributed import from_rank_zero, rank
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Result of one task."""

    label: str
    """Name of the task."""
    kind: str
    """Kind of the task."""
    num_fewshot: int
    """Number of few-shot examples."""
    correct: list[int]
    """Correct samples per example, in the order of the task; 0 or 1 with one sample."""
    num_samples: int
    """Samples per example."""
    num_cut: int
    """Number of examples that did not fit the context."""
    seconds: float
    """Wall-clock time in seconds, excluding the loading of the model."""
    num_formed: int | None = None
    """Number of samples in the task's format, right or wrong; None if the task does not define a format."""

    @property
    def accuracy(self) -> float:
        """Fraction of correct samples."""
        return sum(self.correct) / (len(self.correct) * self.num_samples)

    @property
    def format_rate(self) -> float | None:
        """Fraction of samples in the task's format."""
        return None if self.num_formed is None else self.num_formed / (len(self.correct) * self.num_samples)


class ResultsFile:
    """The finished tasks of one evaluation; every change replaces the file atomically.

    A file with another key (model, data, settings) is replaced; without a path nothing is stored.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.path = path
        self.key = dict(key)
        self.results: dict[str, TaskResult] = {}
        self.replaces_other = False
        """Whether the file has results of another evaluation, which the first new result will replace."""
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
        """Store the result of a finished task."""
        self.results[result.label] = result
        if self.path is not None:
            tasks = [asdict(entry) for entry in self.results.values()]
            write_json(self.path, {"key": self.key, "tasks": tasks})

    def remove(self) -> None:
        """Delete the file after the evaluation, so that the next one starts over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def measure_tasks(
    tasks: Sequence[Any],
    measure: Callable[[Any], TaskResult],
    results: ResultsFile | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Evaluate the unfinished tasks; call it on every rank, and all ranks get all results.

    `results`, of an interrupted evaluation, is extended by new ones; only rank 0's are used. `on_task` is called on
    rank 0 for each task that is or was finished.
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
    """Return a short digest of plain data."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

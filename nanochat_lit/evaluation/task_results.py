"""Results of an evaluation task by task, kept in a file so that a killed evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json


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

    @property
    def accuracy(self) -> float:
        """Share of right samples."""
        return sum(self.correct) / (len(self.correct) * self.num_samples)


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

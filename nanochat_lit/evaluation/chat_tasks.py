"""Loading and checking of the ChatCORE tasks and additional chat tasks."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_lit.common.class_path import import_class
from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import sandbox
from nanochat_lit.tasks.arc import ARC
from nanochat_lit.tasks.base import Task, TaskSlice
from nanochat_lit.tasks.gsm8k import GSM8K
from nanochat_lit.tasks.humaneval import HumanEval, RunCode
from nanochat_lit.tasks.identity import Identity
from nanochat_lit.tasks.mmlu import MMLU
from nanochat_lit.tasks.spelling import CountLetters, SpellWord

CHAT_BASELINES = {"arc_easy": 0.25, "arc_challenge": 0.25, "mmlu": 0.25, "gsm8k": 0.0, "humaneval": 0.0}
"""ChatCORE tasks, with the accuracy of random guessing."""

OTHER_TASKS = ("count_letters", "spell_word", "identity")
"""Additional tasks outside ChatCORE; random guessing scores 0."""

DEFAULT_LABELS = tuple(label for label in CHAT_BASELINES if label != "humaneval")
"""Default tasks without a sandbox; HumanEval is added if a sandbox is available."""

NUM_SPELLING = 256
"""Number of questions of count_letters and of spell_word."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChatTask:
    """One task for chat models."""

    label: str
    """Name of the task."""
    kind: str
    """categorical (the answer is the most likely letter) or generative."""
    task: Task
    """Conversations and evaluation of answers."""

    @property
    def baseline(self) -> float:
        """Accuracy of random guessing."""
        return CHAT_BASELINES.get(self.label, 0.0)


def load_chat_tasks(
    labels: Sequence[str] | None = None,
    paths: Mapping[str, str | Path] | None = None,
    max_per_task: int | None = None,
    run_code: RunCode | None = None,
) -> list[ChatTask]:
    """Load the test splits of the tasks from local files or the Hugging Face hub.

    Args:
        labels: Names in CHAT_BASELINES or OTHER_TASKS, or class paths of tasks. None or an empty list is
            DEFAULT_LABELS, plus HumanEval if `run_code` is given.
        paths: Local files by label; other tasks are downloaded from the hub or need no file.
        max_per_task: Maximum number of questions per task; None uses all.
        run_code: Runs HumanEval programs in isolation.

    Raises:
        UserError: If a label is unknown or repeated, data are unavailable or malformed, or HumanEval is requested
            without `run_code`.
    """
    labels, paths = list(labels or (CHAT_BASELINES if run_code else DEFAULT_LABELS)), dict(paths or {})
    known = (*CHAT_BASELINES, *OTHER_TASKS)
    own = {label for label in labels if "." in label}
    if unknown := sorted({*labels, *paths} - {*known, *own}):
        raise UserError(f"unknown task {', '.join(unknown)}; use {', '.join(known)} or a class path")
    if unused := sorted(set(paths) - set(labels)):
        raise UserError(f"paths contains {', '.join(unused)}, which is not among the tasks {', '.join(labels)}")
    if len(set(labels)) < len(labels):
        raise UserError(f"the tasks {', '.join(labels)} contain a duplicate; remove it")
    if max_per_task is not None and max_per_task < 1:
        raise UserError(f"max_per_task is {max_per_task}; it must be at least 1")
    if "humaneval" in labels and run_code is None:
        raise UserError("humaneval runs code written by a model and needs an isolating run_code; exclude the task")
    return [_load(label, paths.get(label), max_per_task, run_code) for label in labels]


def code_runner(labels: Sequence[str] | None, allow_unsafe: bool = False) -> RunCode | None:
    """Return the runner of HumanEval programs, or None (with a warning) if isolation is not available.

    Args:
        labels: Requested tasks; None or an empty list is every available task.
        allow_unsafe: Run programs even without isolation.

    Raises:
        UserError: If HumanEval is requested by name and cannot be run.
    """
    if labels and "humaneval" not in labels:
        return None
    problem = None if allow_unsafe else sandbox.missing_isolation()
    if problem and labels:
        raise UserError(f"humaneval: {problem}")
    if problem:
        if is_rank_zero():
            _log.warning("humaneval is skipped: %s", problem)
        return None
    return lambda program: sandbox.run_python(program, allow_unsafe=allow_unsafe).ok


def _own_task(class_path: str, path: str | Path | None) -> Task:
    """Create a user-defined task; passes split="test" and path if it has these arguments."""
    found = import_class(class_path, "task")
    wanted = {"split": "test", "path": path}
    takes = inspect.signature(found).parameters
    given = {name: value for name, value in wanted.items() if name in takes and value is not None}
    try:
        inspect.signature(found).bind(**given)
    except TypeError as error:
        raise UserError(
            f"task {class_path} has required arguments other than split and path: {error}; give them defaults"
        ) from None
    task = found(**given)
    if not isinstance(task, Task):
        raise UserError(f"task {class_path} needs __len__, __getitem__ and evaluate; see nanochat_lit.tasks.base.Task")
    return task


def _load(label: str, path: str | Path | None, max_per_task: int | None, run_code: RunCode | None) -> ChatTask:
    if label == "identity" and path is not None:
        raise UserError("paths contains identity, which does not read a file; remove it")
    loaders: dict[str, Callable[[], Task]] = {
        "arc_easy": lambda: ARC("ARC-Easy", "test", path),
        "arc_challenge": lambda: ARC("ARC-Challenge", "test", path),
        "mmlu": lambda: MMLU("test", path),
        "gsm8k": lambda: GSM8K("test", path),
        "humaneval": lambda: HumanEval(run_code, path),
        "count_letters": lambda: CountLetters(NUM_SPELLING, "test", path),
        "spell_word": lambda: SpellWord(NUM_SPELLING, "test", path),
        "identity": Identity,
    }
    task = loaders[label]() if label in loaders else _own_task(label, path)
    kind = "categorical" if "letters" in task[0] else "generative"
    if max_per_task is not None:
        task = TaskSlice(task, 0, max_per_task)
    return ChatTask(label=label, kind=kind, task=task)

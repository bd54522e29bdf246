"""The tasks of ChatCORE and a few more for chat models, loaded and checked before a model runs."""

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
"""The tasks whose mean is ChatCORE, with the accuracy of guessing."""

OTHER_TASKS = ("count_letters", "spell_word", "identity")
"""Tasks outside the default list; their answers cannot be guessed."""

DEFAULT_LABELS = tuple(label for label in CHAT_BASELINES if label != "humaneval")
"""What is measured without being asked for where programs cannot be run; elsewhere HumanEval is, too."""

NUM_SPELLING = 256
"""Questions of count_letters and of spell_word."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChatTask:
    """One task for chat models."""

    label: str
    """Its name."""
    kind: str
    """categorical (the most likely letter is the answer) or generative."""
    task: Task
    """Its conversations and its judgement."""

    @property
    def baseline(self) -> float:
        """Accuracy of guessing."""
        return CHAT_BASELINES.get(self.label, 0.0)


def load_chat_tasks(
    labels: Sequence[str] | None = None,
    paths: Mapping[str, str | Path] | None = None,
    max_per_task: int | None = None,
    run_code: RunCode | None = None,
) -> list[ChatTask]:
    """Test splits of the tasks, from local files or from the Hugging Face hub.

    Args:
        labels: Of CHAT_BASELINES or OTHER_TASKS, or class paths of tasks; None or none is DEFAULT_LABELS, and HumanEval if there is a `run_code`.
        paths: Local files by label; other tasks come from the hub, or need no file.
        max_per_task: Most questions of a task; None takes all.
        run_code: Runs the programs of HumanEval where they can do no harm.

    Raises:
        UserError: If a label is unknown or named twice, data cannot be had or is malformed, or HumanEval is asked for
            without `run_code`.
    """
    labels, paths = list(labels or (CHAT_BASELINES if run_code else DEFAULT_LABELS)), dict(paths or {})
    known = (*CHAT_BASELINES, *OTHER_TASKS)
    own = {label for label in labels if "." in label}
    if unknown := sorted({*labels, *paths} - {*known, *own}):
        raise UserError(f"unknown task {', '.join(unknown)}; use {', '.join(known)}, or a class path")
    if unused := sorted(set(paths) - set(labels)):
        raise UserError(f"paths names {', '.join(unused)}, which is not among the tasks {', '.join(labels)}")
    if len(set(labels)) < len(labels):
        raise UserError(f"the tasks {', '.join(labels)} name one twice")
    if max_per_task is not None and max_per_task < 1:
        raise UserError(f"max_per_task is {max_per_task}; it must be at least 1")
    if "humaneval" in labels and run_code is None:
        raise UserError(
            "humaneval runs what a model has written, which needs a run_code that isolates it; leave it out"
        )
    return [_load(label, paths.get(label), max_per_task, run_code) for label in labels]


def code_runner(labels: Sequence[str] | None, allow_unsafe: bool = False) -> RunCode | None:
    """What runs the programs of HumanEval; None where they cannot be isolated, which is said, or none are asked for.

    Args:
        labels: Of the tasks that are asked for; None or none is every task that can be measured.
        allow_unsafe: Run programs also where they cannot be isolated.

    Raises:
        UserError: If HumanEval is asked for by name and cannot be run.
    """
    if labels and "humaneval" not in labels:
        return None
    problem = None if allow_unsafe else sandbox.missing_isolation()
    if problem and labels:
        raise UserError(f"humaneval: {problem}")
    if problem:
        if is_rank_zero():
            _log.warning("humaneval is left out: %s", problem)
        return None
    return lambda program: sandbox.run_python(program, allow_unsafe=allow_unsafe).ok


def _own_task(class_path: str, path: str | Path | None) -> Task:
    """A task from a module of the user's; it is asked for its test split and given the file if it takes these arguments."""
    found = import_class(class_path, "task")
    wanted = {"split": "test", "path": path}
    takes = inspect.signature(found).parameters
    given = {name: value for name, value in wanted.items() if name in takes and value is not None}
    try:
        inspect.signature(found).bind(**given)
    except TypeError as error:
        raise UserError(f"task {class_path} needs more than split and path: {error}; give the rest defaults") from None
    task = found(**given)
    if not isinstance(task, Task):
        raise UserError(f"task {class_path} needs __len__, __getitem__ and evaluate; see nanochat_lit.tasks.base.Task")
    return task


def _load(label: str, path: str | Path | None, max_per_task: int | None, run_code: RunCode | None) -> ChatTask:
    if label == "identity" and path is not None:
        raise UserError("paths names identity, whose questions come from no file; leave it out")
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

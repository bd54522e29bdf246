"""ChatCORE: the mean centered accuracy of a chat model over several tasks.

A categorical question is answered by the letter with the highest logit, in one forward pass. A generative question is
answered by a completion. A conversation that does not fit the context counts as a wrong answer.
"""

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nanochat_lit.common.distributed import is_rank_zero, rank, sum_over_ranks, world_size
from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.recipes import import_class
from nanochat_lit.engine import sandbox
from nanochat_lit.evaluation.answerer import Answerer, Answering
from nanochat_lit.evaluation.score_report import ResultsFile, TaskResult, digest, measure_tasks, summarize
from nanochat_lit.evaluation.scoring import grouped
from nanochat_lit.tasks.arc import ARC
from nanochat_lit.tasks.base import Conversation, Task, TaskSlice, form_of
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


class ChatTask(NamedTuple):
    """One task for chat models."""

    label: str  # name of the task
    kind: str  # categorical (the answer is the most likely letter) or generative
    task: Task  # conversations and evaluation of answers

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
    """Load the test splits of the tasks from local files (`paths`, by label) or the Hugging Face hub.

    Labels are names in CHAT_BASELINES or OTHER_TASKS, or class paths of tasks; None or an empty list is DEFAULT_LABELS,
    plus HumanEval if `run_code`, which runs its programs in isolation, is given.

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
    check_at_least_one(max_per_task=max_per_task)
    if "humaneval" in labels and run_code is None:
        raise UserError("humaneval runs code written by a model and needs an isolating run_code; exclude the task")
    return [_load(label, paths.get(label), max_per_task, run_code) for label in labels]


def code_runner(labels: Sequence[str] | None, allow_unsafe: bool = False) -> RunCode | None:
    """Return the runner of HumanEval programs. Without isolation: None with a warning, UserError if a label asks."""
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


def evaluate_chat(
    answerer: Answerer,
    tasks: Sequence[ChatTask],
    answering: Answering,
    results: ResultsFile | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Evaluate every task and return one result per task; the ranks of a process group share the questions.

    A letter that is not a single token raises UserError first. `results` and `on_task` are those of `measure_tasks`.
    """
    check_tasks(answerer, tasks)
    return measure_tasks(tasks, lambda task: evaluate_chat_task(answerer, task, answering), results, on_task)


def check_tasks(answerer: Answerer, tasks: Sequence[ChatTask]) -> None:
    """Raise UserError if an answer letter is not a single token of the tokenizer."""
    for chat_task in tasks:
        if chat_task.kind == "categorical":
            letter_tokens(answerer, chat_task)


def evaluate_chat_task(answerer: Answerer, chat_task: ChatTask, answering: Answering) -> TaskResult:
    """Evaluate one task."""
    start_s = time.perf_counter()
    task, size = chat_task.task, len(chat_task.task)
    prompts: dict[int, list[int]] = {}
    # correct samples by question, then the number of samples in the task's format, then of truncated questions
    counts = torch.zeros(size + 2, dtype=torch.int64)
    for index in range(rank(), size, world_size()):
        prompt = answerer.prompt(task[index])
        if len(prompt) <= answerer.sequence_len:
            prompts[index] = prompt
        else:
            counts[-1] += 1
    is_categorical = chat_task.kind == "categorical"
    if is_categorical:
        judged = _categorical(answerer, chat_task, prompts)
    else:
        judged = _generative(answerer, task, prompts, answering)
    for index, num_right, num_formed in judged:
        counts[index] = num_right
        counts[-2] += num_formed
    *correct, num_formed, num_cut = sum_over_ranks(counts.to(answerer.device)).tolist()
    return TaskResult(
        label=chat_task.label,
        kind=chat_task.kind,
        num_fewshot=0,
        correct=correct,
        num_samples=1 if is_categorical else answering.num_samples,
        num_cut=num_cut,
        seconds=time.perf_counter() - start_s,
        num_formed=num_formed if not is_categorical and form_of(task) else None,
    )


def letter_tokens(answerer: Answerer, chat_task: ChatTask) -> dict[tuple[str, ...], list[int]]:
    """Return the token of each answer letter, by the letters of a question; UserError unless each has its own."""
    tokens: dict[tuple[str, ...], list[int]] = {}
    for conversation in (chat_task.task[index] for index in range(len(chat_task.task))):
        letters = tuple(conversation["letters"])
        if letters in tokens:
            continue
        token_ids = [answerer.letter_ids(conversation, letter) for letter in letters]
        for letter, own in zip(letters, token_ids, strict=True):
            if len(own) != 1:
                raise UserError(
                    f"{chat_task.label}: the letter {letter!r} is {len(own)} tokens in this tokenizer, not one; "
                    "exclude the task"
                )
        tokens[letters] = [own[0] for own in token_ids]
        if len(set(tokens[letters])) < len(letters):
            raise UserError(f"{chat_task.label}: the letters {', '.join(letters)} are not all different")
    return tokens


def _categorical(
    answerer: Answerer, chat_task: ChatTask, prompts: dict[int, list[int]]
) -> Iterator[tuple[int, int, int]]:
    """Yield (index, 1 if the most likely letter is right, 0), in batches of similar lengths."""
    tokens, task = letter_tokens(answerer, chat_task), chat_task.task

    def joins(members: list[int], index: int) -> bool:  # noqa: ARG001 - the first one is the longest
        return (len(members) + 1) * len(prompts[members[0]]) <= answerer.tokens_per_pass

    longest_first = sorted(prompts, key=lambda index: len(prompts[index]), reverse=True)
    for members in grouped(longest_first, joins):
        logits = answerer.next_logits([prompts[index] for index in members])
        for index, row in zip(members, logits, strict=True):
            conversation = task[index]
            letters = conversation["letters"]
            scores = row[tokens[tuple(letters)]].tolist()
            predicted = letters[scores.index(max(scores))]  # the first of equal scores
            yield index, int(task.evaluate(conversation, predicted)), 0


def _generative(
    answerer: Answerer, task: Task, prompts: dict[int, list[int]], answering: Answering
) -> Iterator[tuple[int, int, int]]:
    """Yield (index, number of correct samples, number of samples in the task's format)."""
    if answering.temperature == 0:
        completions = answerer.complete(list(prompts.values()), answering.max_new_tokens)
        for index, completion in zip(prompts, completions, strict=True):
            yield index, *_judge(answerer, task, task[index], [completion])
        return
    for index, prompt in prompts.items():
        seed = answering.seed * 1_000_003 + index  # per question, so that answers do not depend on the rank
        samples = answerer.sample(prompt, replace(answering, seed=seed))
        yield index, *_judge(answerer, task, task[index], samples)


def _judge(
    answerer: Answerer, task: Task, conversation: Conversation, samples: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """Return the number of correct samples and of samples in the task's format."""
    answers, form = [answerer.read(sample) for sample in samples], form_of(task)
    num_right = sum(task.evaluate(conversation, *answer) for answer in answers)
    return num_right, sum(form.has_form(*answer) for answer in answers) if form else 0


def summarize_chat(
    tasks: Sequence[ChatTask], results: Sequence[TaskResult], about: Mapping[str, Any], k: int = 1
) -> dict[str, Any]:
    """Return the report of `summarize`."""
    baselines = {"chat_core": {task.label: task.baseline for task in tasks}}
    about = {**about, "world_size": world_size()}
    return summarize("chat_core", list(CHAT_BASELINES), results, baselines, about, k)


def chat_digest(tasks: Sequence[ChatTask]) -> str:
    """Return a digest of the tasks; results of tasks with equal digests can be combined."""
    return digest([[task.label, [task.task[index] for index in range(len(task.task))]] for task in tasks])

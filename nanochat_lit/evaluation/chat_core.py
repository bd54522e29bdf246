"""ChatCORE: the mean centered accuracy of a chat model over several tasks.

A categorical question is answered by the letter with the highest logit, in one forward pass. A generative question is
answered by a completion. A conversation that does not fit the context counts as a wrong answer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from nanochat_lit.common.distributed import rank, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.evaluation.answerer import Answerer, Answering
from nanochat_lit.evaluation.chat_tasks import ChatTask
from nanochat_lit.evaluation.ranks import sum_over_ranks
from nanochat_lit.evaluation.task_results import ResultsFile, TaskResult, digest, measure_tasks
from nanochat_lit.tasks.base import Conversation, Task, form_of


def evaluate_chat(
    answerer: Answerer,
    tasks: Sequence[ChatTask],
    answering: Answering,
    results: ResultsFile | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Evaluate every task; with a process group, the questions are distributed over the ranks.

    Args:
        answerer: Model to evaluate.
        tasks: Tasks from `load_chat_tasks`.
        answering: Sampling settings of generative questions.
        results: Results of an earlier evaluation, extended by this one; only rank 0's are used.
        on_task: Called on rank 0 for each task that is or was finished.

    Returns:
        One result per task, in order, on every rank.

    Raises:
        UserError: If a letter is not a single token or a setting is invalid; raised before any question is asked.
    """
    check_tasks(answerer, tasks, answering)
    return measure_tasks(tasks, lambda task: evaluate_chat_task(answerer, task, answering), results, on_task)


def check_tasks(answerer: Answerer, tasks: Sequence[ChatTask], answering: Answering) -> None:
    """Check tasks and settings before an evaluation.

    Args:
        answerer: Model to evaluate.
        tasks: Tasks from `load_chat_tasks`.
        answering: Sampling settings of generative questions.

    Raises:
        UserError: If a letter is not a single token or a setting is invalid.
    """
    SamplingParams(temperature=answering.temperature, top_k=answering.top_k or 0)  # validates both
    for name in ("num_samples", "max_new_tokens"):
        if getattr(answering, name) < 1:
            raise UserError(f"{name} is {getattr(answering, name)}; it must be at least 1")
    if answering.num_samples > 1 and answering.temperature == 0:
        raise UserError(
            f"{answering.num_samples} samples at temperature 0 would be identical; set a positive temperature"
        )
    for chat_task in tasks:
        if chat_task.kind == "categorical":
            letter_tokens(answerer, chat_task)


def evaluate_chat_task(answerer: Answerer, chat_task: ChatTask, answering: Answering) -> TaskResult:
    """Evaluate one task.

    Args:
        answerer: Model to evaluate.
        chat_task: The task.
        answering: Sampling settings of generative questions.
    """
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
    """Return the token of each answer letter, by the letters of a question.

    Args:
        answerer: Model to evaluate.
        chat_task: A categorical task.

    Raises:
        UserError: If a letter is not a single token, or two letters have the same token.
    """
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
    for members in _batches(prompts, answerer.tokens_per_pass):
        logits = answerer.next_logits([prompts[index] for index in members])
        for index, row in zip(members, logits, strict=True):
            conversation = task[index]
            letters = conversation["letters"]
            scores = row[tokens[tuple(letters)]].tolist()
            predicted = letters[scores.index(max(scores))]  # the first of equal scores
            yield index, int(task.evaluate(conversation, predicted)), 0


def _batches(prompts: dict[int, list[int]], tokens_per_pass: int) -> Iterator[list[int]]:
    members: list[int] = []
    for index in sorted(prompts, key=lambda index: len(prompts[index]), reverse=True):
        if members and (len(members) + 1) * len(prompts[members[0]]) > tokens_per_pass:
            yield members
            members = []
        members.append(index)
    if members:
        yield members


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


def chat_digest(tasks: Sequence[ChatTask]) -> str:
    """Return a digest of the tasks; results of tasks with equal digests can be combined.

    Args:
        tasks: Tasks from `load_chat_tasks`.
    """
    return digest([[task.label, [task.task[index] for index in range(len(task.task))]] for task in tasks])

"""ChatCORE: the mean centered accuracy of a chat model over tasks that it answers in a conversation.

A categorical question is answered by the letter with the highest logit among its own, in one forward pass; a generative
one by what the model writes. A conversation that does not fit the model's context counts as answered wrongly.
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
    """Ask and judge every task; with a process group, every rank takes its share of the questions.

    Args:
        answerer: Who is asked.
        tasks: Of `load_chat_tasks`.
        answering: How generative questions are answered.
        results: Holds what an earlier evaluation has finished, and takes what this one finishes; only rank 0's counts.
        on_task: Called on rank 0 when a task is done, or was done already.

    Returns:
        One result a task, in their order, on every rank.

    Raises:
        UserError: If a letter is not one token, or a setting is impossible; before anything is asked.
    """
    check_tasks(answerer, tasks, answering)
    return measure_tasks(tasks, lambda task: evaluate_chat_task(answerer, task, answering), results, on_task)


def check_tasks(answerer: Answerer, tasks: Sequence[ChatTask], answering: Answering) -> None:
    """See that nothing would stop an evaluation later on.

    Args:
        answerer: Who will be asked.
        tasks: Of `load_chat_tasks`.
        answering: How generative questions are answered.

    Raises:
        UserError: If a letter is not one token, or a setting is impossible.
    """
    SamplingParams(temperature=answering.temperature, top_k=answering.top_k or 0)  # checks them
    for name in ("num_samples", "max_new_tokens"):
        if getattr(answering, name) < 1:
            raise UserError(f"{name} is {getattr(answering, name)}; it must be at least 1")
    if answering.num_samples > 1 and answering.temperature == 0:
        raise UserError(f"{answering.num_samples} samples at temperature 0 would all be equal; raise the temperature")
    for chat_task in tasks:
        if chat_task.kind == "categorical":
            letter_tokens(answerer, chat_task)


def evaluate_chat_task(answerer: Answerer, chat_task: ChatTask, answering: Answering) -> TaskResult:
    """Ask and judge one task.

    Args:
        answerer: Who is asked.
        chat_task: The task.
        answering: How generative questions are answered.
    """
    start_s = time.perf_counter()
    task, size = chat_task.task, len(chat_task.task)
    prompts: dict[int, list[int]] = {}
    # right samples by question; then samples that have the task's form; then questions that are cut
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
    """The token that stands for each letter, by the letters of a question; their logits are its answer.

    Args:
        answerer: Who is asked.
        chat_task: A categorical task.

    Raises:
        UserError: If a letter is not a single token, or two are the same; it names the task and the letter.
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
                    f"{chat_task.label}: the letter {letter!r} is {len(own)} tokens of this tokenizer and not one; "
                    "leave the task out"
                )
        tokens[letters] = [own[0] for own in token_ids]
        if len(set(tokens[letters])) < len(letters):
            raise UserError(f"{chat_task.label}: the letters {', '.join(letters)} are not all different")
    return tokens


def _categorical(
    answerer: Answerer, chat_task: ChatTask, prompts: dict[int, list[int]]
) -> Iterator[tuple[int, int, int]]:
    """(index, 1 if the most likely letter is right, 0 for a form that needs no care), in batches of similar lengths."""
    tokens, task = letter_tokens(answerer, chat_task), chat_task.task
    for members in _batches(prompts, answerer.tokens_per_pass):
        logits = answerer.next_logits([prompts[index] for index in members])
        for index, row in zip(members, logits, strict=True):
            conversation = task[index]
            letters = conversation["letters"]
            scores = row[tokens[tuple(letters)]].tolist()
            predicted = letters[scores.index(max(scores))]  # the first of equal ones
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
    """(index, number of right samples, number of samples that have the task's form)."""
    if answering.temperature == 0:
        completions = answerer.complete(list(prompts.values()), answering.max_new_tokens)
        for index, completion in zip(prompts, completions, strict=True):
            yield index, *_judge(answerer, task, task[index], [completion])
        return
    for index, prompt in prompts.items():
        seed = answering.seed * 1_000_003 + index  # the question's own, so that ranks don't matter
        samples = answerer.sample(prompt, replace(answering, seed=seed))
        yield index, *_judge(answerer, task, task[index], samples)


def _judge(
    answerer: Answerer, task: Task, conversation: Conversation, samples: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """How many samples are right, and how many have the task's form."""
    answers, form = [answerer.read(sample) for sample in samples], form_of(task)
    num_right = sum(task.evaluate(conversation, *answer) for answer in answers)
    return num_right, sum(form.has_form(*answer) for answer in answers) if form else 0


def chat_digest(tasks: Sequence[ChatTask]) -> str:
    """A fingerprint of the tasks: results of equal tasks may be joined.

    Args:
        tasks: Of `load_chat_tasks`.
    """
    return digest([[task.label, [task.task[index] for index in range(len(task.task))]] for task in tasks])

"""CORE: the mean centered accuracy over 22 tasks, few-shot, for base models (Li et al. 2024, DCLM).

https://arxiv.org/abs/2406.11794
"""

import time
from collections.abc import Callable, Sequence

import torch

from nanochat_lit.common.distributed import rank, world_size
from nanochat_lit.evaluation.core_bundle import CoreTask
from nanochat_lit.evaluation.core_prompts import Encoder, encode_examples, is_right
from nanochat_lit.evaluation.ranks import sum_over_ranks
from nanochat_lit.evaluation.scoring import Scorer
from nanochat_lit.evaluation.task_results import ResultsFile, TaskResult, digest, measure_tasks

EXAMPLES_PER_WINDOW = 2048
"""Number of examples to tokenize at a time; large, so that examples of equal lengths can be batched."""


def evaluate_core(
    scorer: Scorer,
    tokenizer: Encoder,
    tasks: Sequence[CoreTask],
    results: ResultsFile | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
    device: torch.device | str = "cpu",
) -> list[TaskResult]:
    """Evaluate every task; with a process group, the examples are distributed over the ranks.

    Args:
        scorer: The model.
        tokenizer: Its tokenizer.
        tasks: Tasks of a bundle.
        results: Results of an earlier evaluation, extended by this one; only rank 0's are used.
        on_task: Called on rank 0 for each task that is or was finished.
        device: Device of the process group's collectives.

    Returns:
        One result per task, in order, on every rank.
    """
    return measure_tasks(tasks, lambda task: evaluate_task(scorer, tokenizer, task, device), results, on_task)


def evaluate_task(scorer: Scorer, tokenizer: Encoder, task: CoreTask, device: torch.device | str = "cpu") -> TaskResult:
    """Evaluate one task.

    Args:
        scorer: The model.
        tokenizer: Its tokenizer.
        task: The task.
        device: Device of the process group's collectives, if there is one.
    """
    start_s = time.perf_counter()
    counts = torch.zeros(
        len(task.rows) + 1, dtype=torch.int64
    )  # 1 per correct record; the last entry counts truncated ones
    mine = range(rank(), len(task.rows), world_size())
    for begin in range(0, len(mine), EXAMPLES_PER_WINDOW):
        indices = mine[begin : begin + EXAMPLES_PER_WINDOW]
        examples, num_cut = encode_examples(task, indices, tokenizer, scorer.sequence_len)
        counts[-1] += num_cut
        for index, scores in zip(indices, scorer.score(examples), strict=True):
            counts[index] = int(is_right(task, index, scores))
    *correct, num_cut = sum_over_ranks(counts.to(device)).tolist()
    return TaskResult(
        label=task.label,
        kind=task.kind,
        num_fewshot=task.num_fewshot,
        correct=correct,
        num_samples=1,
        num_cut=num_cut,
        seconds=time.perf_counter() - start_s,
    )


def bundle_digest(tasks: Sequence[CoreTask]) -> str:
    """Return a digest of the tasks; results of tasks with equal digests can be combined.

    Args:
        tasks: Tasks of a bundle, after capping.
    """
    return digest([[task.label, task.kind, task.num_fewshot, task.delimiter, task.rows] for task in tasks])

"""bench.py core: examples per second of `evaluate core`, beside the plain way, on the same model in one run."""

import statistics
import time
from collections.abc import Callable, Sequence
from json import dumps
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.export import load_export
from nanochat_lit.evaluation.core import CoreTask, encode_examples, evaluate_task, is_right, load_bundle
from nanochat_lit.evaluation.scoring import Example, GPTScorer, RowScore

if TYPE_CHECKING:
    from nanochat_lit.model import GPT
    from nanochat_lit.tokenizer import Tokenizer

WARM_UP = 2
"""Examples of each task that are answered before the clock runs."""


def bench_core(
    model: str,
    bundle: str,
    max_per_task: int = 20,
    repeats: int = 3,
    device: str = "cpu",
    compute_dtype: str = "auto",
    json: bool = False,
) -> None:
    """Examples per second of `evaluate core` beside the plain way: one example at a time, every choice a whole row, float32.

    The ways take turns, all examples each time; the medians are printed, and how many answers differ from the plain way's.

    Args:
        model: Export, run folder, or .ckpt file.
        bundle: Folder of an evaluation bundle.
        max_per_task: Examples of a task.
        repeats: How often every way is timed.
        device: cpu, cuda or mps.
        compute_dtype: auto, bfloat16, float16 or float32; `evaluate core` is timed in it, and in float32 besides.
        json: Print only JSON.
    """
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; it must be at least 1")
    tasks = load_bundle(bundle, max_per_task)
    plain, tokenizer = load_export(model, device, "float32")
    exact, _ = load_export(model, device, "float32", cast_weights=True, packed=False)
    fast, _ = load_export(model, device, compute_dtype, cast_weights=True, packed=False)
    ways: dict[str, Callable[[CoreTask], list[int]]] = {
        "plain float32": lambda task: plain_answers(plain, tokenizer, task),
        "evaluate core float32": lambda task: evaluate_task(GPTScorer(exact), tokenizer, task).correct,
        f"evaluate core {str(fast.compute_dtype).removeprefix('torch.')}": lambda task: (
            evaluate_task(GPTScorer(fast), tokenizer, task).correct
        ),
    }
    report = _measure(ways, tasks, repeats)
    print(dumps(report) if json else _table(report))


def _measure(
    ways: dict[str, Callable[[CoreTask], list[int]]], tasks: Sequence[CoreTask], repeats: int
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[int]] = {}
    for task in tasks:
        few = CoreTask(**{**task._asdict(), "rows": task.rows[: task.num_fewshot + WARM_UP]})
        for answer in ways.values():
            answer(few)
    for _ in range(repeats):
        for name, answer in ways.items():
            start_s = time.perf_counter()
            answers[name] = [correct for task in tasks for correct in answer(task)]
            seconds[name].append(time.perf_counter() - start_s)
    first = next(iter(ways))
    count, plain_s = len(answers[first]), statistics.median(seconds[first])
    rows = [
        {
            "way": name,
            "examples_per_s": count / statistics.median(own),
            "ratio": plain_s / statistics.median(own),
            "differing_answers": sum(a != b for a, b in zip(answers[name], answers[first], strict=True)),
        }
        for name, own in seconds.items()
    ]
    return {
        "examples": count,
        "tasks": len(tasks),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "ways": rows,
    }


def plain_answers(gpt: "GPT", tokenizer: "Tokenizer", task: CoreTask) -> list[int]:
    """1 for every row answered rightly: one example at a time, all logits of every choice's whole row.

    Args:
        gpt: The model.
        tokenizer: Its tokenizer.
        task: The task.
    """
    right = []
    for index in range(len(task.rows)):
        (example,), _ = encode_examples(task, [index], tokenizer, gpt.config.sequence_len)
        right.append(int(is_right(task, index, _plain_scores(gpt, example))))
    return right


@torch.inference_mode()
def _plain_scores(gpt: "GPT", example: Example) -> list[RowScore]:
    length = max(map(len, example.rows))
    inputs = torch.zeros(len(example.rows), length, dtype=torch.int64)
    for number, row in enumerate(example.rows):
        inputs[number, : len(row)] = torch.from_numpy(row)
    logits: Tensor = gpt(inputs.to(gpt.device)).cpu()  # (choices, T, V)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
    losses, hits = losses.view(len(example.rows), -1), logits[:, :-1].argmax(-1) == inputs[:, 1:]
    return [
        RowScore(
            mean_loss=float(losses[number, start - 1 : len(row) - 1].mean()),
            is_greedy=bool(hits[number, start - 1 : len(row) - 1].all()),
        )
        for number, (row, start) in enumerate(zip(example.rows, example.starts, strict=True))
    ]


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['examples']} examples of {report['tasks']} tasks, {report['threads']} threads, medians of {report['repeats']}",
        "",
        "| way | examples/s | ratio | answers that differ |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['way']} | {row['examples_per_s']:.1f} | {row['ratio']:.1f} | {row['differing_answers']} |"
        for row in report["ways"]
    ]
    return "\n".join(lines)

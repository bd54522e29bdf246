"""Results of an evaluation: per task, in a file so that an interrupted one can resume; and as JSON, Markdown and a plot."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanochat_lit.common.distributed import from_rank_zero, rank
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, read_json, write_json
from nanochat_lit.evaluation.statistics import NUM_RESAMPLES, centered, interval, pass_at_k, resampled_accuracies


class TaskResult(NamedTuple):
    """Result of one task."""

    label: str  # name of the task
    kind: str  # kind of the task
    num_fewshot: int  # number of few-shot examples
    correct: list[int]  # correct samples per example, in the order of the task; 0 or 1 with one sample
    num_samples: int  # samples per example
    num_cut: int  # number of examples that did not fit the context
    seconds: float  # wall-clock time in seconds, excluding the loading of the model
    num_formed: int | None = None  # samples in the task's format, right or wrong; None if it has none

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
            tasks = [entry._asdict() for entry in self.results.values()]
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


SEED = 0
SETTINGS = (
    "model", "prompts", "bundle", "compute_dtype", "max_per_task",
    "num_samples", "temperature", "top_k", "max_new_tokens", "seed", "world_size",
)  # fmt: skip
"""Evaluation settings shown on the page, if the report has them."""

TITLES = {"core": "CORE", "chat_core": "ChatCORE"}
CUT = {
    "core": "were truncated on the left to fit the context",
    "chat_core": "do not fit the context and count as wrong answers",
}
"""Treatment of examples that are too long, by metric."""


def summarize(
    metric: str,
    members: Sequence[str],
    results: Sequence[TaskResult],
    baselines: Mapping[str, Mapping[str, float]],
    about: Mapping[str, Any],
    k: int = 1,
) -> dict[str, Any]:
    """Summarize an evaluation as JSON-safe data.

    `metric` is "core" or "chat_core", `members` are the tasks of its mean (others are only listed in the table).
    `baselines` are accuracies of random guessing by version and task; the first version is the main one. `about` is
    copied to the report, which has pass@k for tasks with several samples.

    Returns:
        `metric`; `scores` by version: value, low, high (95% bootstrap interval), or None without members; `is_partial`,
            `missing`; `tasks`: label, is_member, kind, num_fewshot, examples, accuracy with low and high, baseline and
            centered by version, format_rate if the task defines a format, cut, seconds; `examples`, `seconds`,
            `examples_per_s`.
    """
    rng = np.random.default_rng(SEED)
    samples = {result.label: _samples(result, rng) for result in results}
    counted = [result for result in results if result.label in members]
    missing = [label for label in members if label not in samples]
    seconds = sum(result.seconds for result in results)
    examples = sum(len(result.correct) for result in results)
    return {
        "metric": metric,
        "scores": {version: _score(counted, samples, table) for version, table in baselines.items()},
        "is_partial": bool(missing),
        "missing": missing,
        "tasks": [
            {
                "label": result.label,
                "is_member": result in counted,
                **_entry(result, samples[result.label], baselines, k),
            }
            for result in results
        ],
        "examples": examples,
        "seconds": seconds,
        "examples_per_s": examples / seconds if seconds else None,
        **about,
    }


def _score(
    results: Sequence[TaskResult], samples: Mapping[str, np.ndarray], baselines: Mapping[str, float]
) -> dict[str, float | None]:
    if not results:
        return {"value": None, "low": None, "high": None}
    values = [centered(result.accuracy, baselines[result.label]) for result in results]
    drawn = [(samples[result.label] - baselines[result.label]) / (1.0 - baselines[result.label]) for result in results]
    low, high = interval(np.mean(drawn, axis=0))
    return {"value": math.fsum(values) / len(values), "low": low, "high": high}


def _entry(
    result: TaskResult, samples: np.ndarray, baselines: Mapping[str, Mapping[str, float]], k: int
) -> dict[str, Any]:
    low, high = interval(samples)
    own = {version: table[result.label] for version, table in baselines.items()}
    entry: dict[str, Any] = {
        "kind": result.kind,
        "num_fewshot": result.num_fewshot,
        "examples": len(result.correct),
        "accuracy": result.accuracy,
        "low": low,
        "high": high,
        "baseline": own,
        "centered": {version: centered(result.accuracy, baseline) for version, baseline in own.items()},
        "cut": result.num_cut,
        "seconds": result.seconds,
    }
    if result.format_rate is not None:
        entry["format_rate"] = result.format_rate
    if result.num_samples > 1:
        entry |= {"num_samples": result.num_samples, "k": k}
        entry["pass_at_k"] = pass_at_k(result.correct, result.num_samples, k)
    return entry


def _samples(result: TaskResult, rng: np.random.Generator) -> np.ndarray:
    """Return bootstrap samples of a task's accuracy, resampling examples but not the answers to each."""
    num_examples = len(result.correct)
    if result.num_samples == 1:
        return resampled_accuracies(sum(result.correct), num_examples, rng)
    shares, counts = np.unique(np.array(result.correct) / result.num_samples, return_counts=True)
    drawn = rng.multinomial(num_examples, counts / num_examples, size=NUM_RESAMPLES)
    return drawn @ shares / num_examples


def headline(report: Mapping[str, Any]) -> list[str]:
    """Return a line per version of the metric, and notes on missing tasks and truncated examples."""
    title = TITLES[report["metric"]]
    num_members = sum(task["is_member"] for task in report["tasks"])
    if not num_members:
        return [f"None of the {len(report['missing'])} tasks of {title} was evaluated, so the mean is omitted."]
    lines = []
    for version, score in report["scores"].items():
        name = title if len(report["scores"]) == 1 else f"{title} ({version} baselines)"
        if report["is_partial"]:
            name = f"mean of {num_members} {'task' if num_members == 1 else 'tasks'}, partial {name}"
        lines.append(f"{name}: {score['value']:.4f} (95% interval {score['low']:.4f} to {score['high']:.4f})")
    if report["is_partial"]:
        missing = report["missing"]
        lines.append(
            f"This mean is partial and not comparable with {title}: {len(missing)} of {num_members + len(missing)} "
            f"tasks are missing ({', '.join(missing)})."
        )
    if num_cut := sum(task["cut"] for task in report["tasks"]):
        lines.append(f"{num_cut:,} of the {report['examples']:,} examples {CUT[report['metric']]}.")
    return lines


def table_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of a report as text cells, beginning with the heading."""
    versions = list(report["scores"])
    several = any("k" in task for task in report["tasks"])
    formed = any("format_rate" in task for task in report["tasks"])
    differ = len(versions) > 1
    heading = ["task", "kind", "shots", "examples", "accuracy", "95% interval"]
    heading += [f"baseline {version}" if differ else "baseline" for version in versions]
    heading += [f"centered {version}" if differ else "centered" for version in versions]
    rows = [heading + (["form"] if formed else []) + (["pass@k"] if several else []) + ["cut", "seconds"]]
    for task in report["tasks"]:
        cells = [task["label"], task["kind"], str(task["num_fewshot"]), str(task["examples"])]
        cells += [f"{task['accuracy']:.4f}", f"{task['low']:.3f} to {task['high']:.3f}"]
        cells += [f"{task['baseline'][version]:.3f}" for version in versions]
        cells += [f"{task['centered'][version]:.4f}" for version in versions]
        if formed:
            cells.append(f"{task['format_rate']:.3f}" if "format_rate" in task else "")
        if several:
            cells.append(f"{task['pass_at_k']:.4f} (k {task['k']})" if "k" in task else "")
        rows.append([*cells, str(task["cut"]), f"{task['seconds']:.1f}"])
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as a Markdown page."""
    heading, *rows = table_rows(report)
    lines = [f"# {TITLES[report['metric']]}", ""]
    lines += [f"{line}  " for line in headline(report)]
    speed = "" if report["examples_per_s"] is None else f", {report['examples_per_s']:.1f} examples/s"
    lines += ["", f"{report['examples']:,} examples in {report['seconds']:.1f} s{speed}."]
    for name in SETTINGS:
        if report.get(name) is not None:
            lines.append(f"{name}: {report[name]}.")
    lines += ["", "| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {line}" for line in legend(report))]
    return "\n".join(lines) + "\n"


def legend(report: Mapping[str, Any]) -> list[str]:
    """Return explanations of the table's columns."""
    tasks = report["tasks"]
    lines = [f"cut: examples that {CUT[report['metric']]}."]
    if any("format_rate" in task for task in tasks):
        lines.append(
            'form: fraction of the answers, right or wrong, in the task\'s format (GSM8K: "####" and a number).'
        )
    if any("k" in task for task in tasks):
        lines.append(
            "pass@k: fraction of the questions that at least one of k samples solves, estimated from all samples."
        )
    if any(task["low"] == task["high"] for task in tasks):
        lines.append(
            "An interval of zero width (all answers right or all wrong) is not informative: resampling cannot vary."
        )
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text cells for a terminal: the first two columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write <metric>.json, .md and .png into a folder."""
    name = report["metric"]
    write_json(folder / f"{name}.json", report)
    with atomic_write(folder / f"{name}.md", "w") as file:
        file.write(markdown(report))
    with atomic_write(folder / f"{name}.png") as file:
        _plot(file, report)


def _plot(file: Any, report: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    version = next(iter(report["scores"]))
    tasks = sorted(report["tasks"], key=lambda task: task["centered"][version])
    values = [task["centered"][version] for task in tasks]
    ends = [[centered(task[end], task["baseline"][version]) for task in tasks] for end in ("low", "high")]
    errors = [
        [max(0.0, value - low) for value, low in zip(values, ends[0], strict=True)],
        [max(0.0, high - value) for value, high in zip(values, ends[1], strict=True)],
    ]
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(tasks)), layout="constrained")
    axes = figure.subplots()
    axes.barh([task["label"] for task in tasks], values, xerr=errors, color="#4878a8", ecolor="#333333", capsize=2)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="centered accuracy (0: random guessing, 1: perfect)")
    figure.suptitle(headline(report)[0].replace(" (95%", "\n(95%"), fontsize=9)  # break the line so that it fits
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(file, dpi=120, format="png")

"""Tables of an evaluation: a dict for JSON, markdown to read, a plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_lit.common.paths import atomic_write, write_json
from nanochat_lit.evaluation.statistics import NUM_RESAMPLES, centered, interval, pass_at_k, resampled_accuracies
from nanochat_lit.evaluation.task_results import TaskResult

SEED = 0
SETTINGS = (
    "model", "prompts", "bundle", "compute_dtype", "max_per_task",
    "num_samples", "temperature", "top_k", "max_new_tokens", "seed", "world_size",
)  # fmt: skip
"""What a page says of how it was measured, where the report knows it."""

TITLES = {"core": "CORE", "chat_core": "ChatCORE"}
CUT = {
    "core": "lost tokens on the left, because they do not fit the context",
    "chat_core": "do not fit the context and count as answered wrongly",
}
"""What became of examples that were too long."""


def summarize(
    metric: str,
    members: Sequence[str],
    results: Sequence[TaskResult],
    baselines: Mapping[str, Mapping[str, float]],
    about: Mapping[str, Any],
    k: int = 1,
) -> dict[str, Any]:
    """Everything that was measured, ready for JSON.

    Args:
        metric: "core" or "chat_core".
        members: Tasks whose mean centered accuracy the metric is; other tasks stand in the table alone.
        results: One a task.
        baselines: Accuracy of guessing by version of the baselines and task; the first version is the main one.
        about: Model, data and settings, added as they are.
        k: For tasks that are asked several times, also the share that one of k samples solves.

    Returns:
        `metric`; `scores` by version: value, low, high (95% bootstrap interval), None if no member was measured;
        `is_partial`, `missing`; `tasks`: label, is_member, kind, num_fewshot, examples, accuracy with low and high, and by
        version baseline and centered, format_rate where the task knows a form, cut, seconds; `examples`, `seconds`, `examples_per_s`.
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
    """The mean centered accuracy of tasks with its interval."""
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
    """Bootstrap samples of a task's accuracy; what varies is the examples, not the samples of each."""
    num_examples = len(result.correct)
    if result.num_samples == 1:
        return resampled_accuracies(sum(result.correct), num_examples, rng)
    shares, counts = np.unique(np.array(result.correct) / result.num_samples, return_counts=True)
    drawn = rng.multinomial(num_examples, counts / num_examples, size=NUM_RESAMPLES)
    return drawn @ shares / num_examples


def headline(report: Mapping[str, Any]) -> list[str]:
    """One line per version of the metric, and what is to be known of it: which tasks are missing, how many examples were cut.

    Args:
        report: Of `summarize`.
    """
    title = TITLES[report["metric"]]
    num_members = sum(task["is_member"] for task in report["tasks"])
    if not num_members:
        return [f"None of the {len(report['missing'])} tasks of {title} was measured, so the mean is left out."]
    lines = []
    for version, score in report["scores"].items():
        name = title if len(report["scores"]) == 1 else f"{title} ({version} baselines)"
        if report["is_partial"]:
            name = f"mean of {num_members} {'task' if num_members == 1 else 'tasks'}, partial {name}"
        lines.append(f"{name}: {score['value']:.4f} (95% interval {score['low']:.4f} to {score['high']:.4f})")
    if report["is_partial"]:
        missing = report["missing"]
        lines.append(
            f"This mean is partial and cannot be compared with {title}: {len(missing)} of {num_members + len(missing)} "
            f"tasks are missing ({', '.join(missing)})."
        )
    if num_cut := sum(task["cut"] for task in report["tasks"]):
        lines.append(f"{num_cut:,} of the {report['examples']:,} examples {CUT[report['metric']]}.")
    return lines


def table_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of a report as text, the heading first.

    Args:
        report: Of `summarize`.
    """
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
    """The report as a page.

    Args:
        report: Of `summarize`.
    """
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
    """What the columns of the table mean that do not say so themselves.

    Args:
        report: Of `summarize`.
    """
    tasks = report["tasks"]
    lines = [f"cut: examples that {CUT[report['metric']]}."]
    if any("format_rate" in task for task in tasks):
        lines.append(
            'form: share of the answers, right or wrong, that end as the task\'s do (GSM8K: "####" and a number).'
        )
    if any("k" in task for task in tasks):
        lines.append(
            "pass@k: share of the questions that at least one of k samples answers, estimated from all samples."
        )
    if any(task["low"] == task["high"] for task in tasks):
        lines.append(
            "An interval without width (all answers right, or all wrong) says nothing: drawing equal answers again cannot vary."
        )
    return lines


def plain_table(report: Mapping[str, Any]) -> str:
    """The table in columns, for a terminal.

    Args:
        report: Of `summarize`.
    """
    rows = table_rows(report)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write <metric>.json, .md and .png into a folder.

    Args:
        folder: Made if needed.
        report: Of `summarize`.
    """
    name = report["metric"]
    write_json(folder / f"{name}.json", report)
    with atomic_write(folder / f"{name}.md", "w") as file:
        file.write(markdown(report))
    with atomic_write(folder / f"{name}.png") as file:
        _plot(file, report)


def _plot(file: Any, report: Mapping[str, Any]) -> None:
    """Bars of the centered accuracies with their intervals; 0 is guessing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh([task["label"] for task in tasks], values, xerr=errors, color="#4878a8", ecolor="#333333", capsize=2)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="centered accuracy (0 is guessing, 1 is perfect)")
    figure.suptitle(headline(report)[0].replace(" (95%", "\n(95%"), fontsize=9)  # two lines, or it is cut off
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(file, dpi=120, format="png")

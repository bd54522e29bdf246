"""The report of a quickstart: what was reached, curves, dialogues."""

from pathlib import Path
from typing import Any

from nanochat_lit.common.paths import atomic_write, read_json
from nanochat_lit.common.peak_memory import memory_text
from nanochat_lit.evaluation.plots import plot_curves
from nanochat_lit.evaluation.samples import readable
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.training.metrics_file import METRICS_FILE, read_metrics

STAGES = (("pretraining", "pretrain"), ("fine-tuning", "."))


def write_report(
    folder: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    dialogues: list[list[dict[str, Any]]],
    seconds: float,
    peak_bytes: int,
) -> None:
    """Write report.md, loss.png and bpb.png.

    Args:
        folder: Of the quickstart; holds the runs' metrics and the export.
        before: Examination of the base model.
        after: Examination of the chat model.
        dialogues: Conversations with the chat model.
        seconds: That everything took.
        peak_bytes: Most memory held.
    """
    metrics = {stage: read_metrics(folder / run / METRICS_FILE) for stage, run in STAGES}
    _write_plots(folder, metrics)
    config = GPTConfig.from_dict(read_json(folder / "export" / "config.json"))
    lines = [
        "# Quickstart report",
        "",
        (
            f"A GPT of {config.n_layer} layers, width {config.n_embd}, {count_parameters(config).total:,} parameters, "
            f"vocabulary {config.vocab_size:,}, context {config.sequence_len}, trained from nothing in "
            f"{seconds / 60:.1f} minutes; peak memory {memory_text(peak_bytes)}."
        ),
        "",
        "| stage | steps | val bpb before | val bpb after |",
        "|---|---|---|---|",
        *(_stage_row(stage, rows) for stage, rows in metrics.items()),
        "",
        "Each stage has its own validation texts: documents for pretraining, the answers in conversations for fine-tuning.",
        "",
        *_accuracy_table(before, after),
        "",
        "## Curves",
        "",
        "![training loss](loss.png)",
        "",
        "![validation bits per byte](bpb.png)",
        "",
        "## Dialogues",
        "",
        *(line for dialogue in dialogues for line in _dialogue_lines(dialogue)),
        "## Wrong answers",
        "",
        *(_failure_line(failure) for failure in after["failures"][:20]),
        "",
        f"Chat with it: `nanochat-lit chat --model {folder / 'export'}`",
        "",
    ]
    with atomic_write(folder / "report.md", "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


def _write_plots(folder: Path, metrics: dict[str, dict[int, dict[str, float]]]) -> None:
    for name, column, label in (
        ("loss", "train_loss", "training loss, nats per token"),
        ("bpb", "val_bpb", "validation, bits per byte"),
    ):
        curves = {stage: _column(rows, column) for stage, rows in metrics.items()}
        plot_curves(folder / f"{name}.png", f"{label} over the quickstart", label, curves)


def _accuracy_table(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        "| held-out questions | base model | chat model |",
        "|---|---|---|",
        *(
            f"| {name} | {_percent(before['categories'].get(name))} | {_percent(result)} |"
            for name, result in after["categories"].items()
        ),
        f"| **all** | {before['accuracy']:.1%} | **{after['accuracy']:.1%}** |",
    ]


def _column(rows: dict[int, dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
    return [float(step) for step, _ in points], [value for _, value in points]


def _stage_row(stage: str, rows: dict[int, dict[str, float]]) -> str:
    steps, values = _column(rows, "val_bpb")
    if not values:
        return f"| {stage} | {max(rows, default=0)} | | |"
    return f"| {stage} | {steps[-1]:.0f} | {values[0]:.4f} | {values[-1]:.4f} |"


def _percent(result: dict[str, Any] | None) -> str:
    return "" if result is None else f"{result['accuracy']:.1%} ({result['correct']}/{result['count']})"


def _dialogue_lines(messages: list[dict[str, Any]]) -> list[str]:
    lines = []
    for message in messages:
        content = message["content"]
        lines.append(f"> **{message['role']}**: {content if isinstance(content, str) else readable(content)}")
        lines.append(">")
    return [*lines[:-1], ""]


def _failure_line(failure: dict[str, Any]) -> str:
    question = failure["question"].replace("\n", " / ")
    return f"- {failure['category']}: {question} -> {failure['answer']}"

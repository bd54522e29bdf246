"""Report of a quickstart: results, curves, dialogues."""

from pathlib import Path
from typing import Any

from nanochat_lit.common.paths import atomic_write, read_json
from nanochat_lit.common.peak_memory import memory_text
from nanochat_lit.evaluation.plots import plot_curves
from nanochat_lit.evaluation.samples import readable
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.report.page import Markdown, fill
from nanochat_lit.training.run_records import METRICS_FILE, read_metrics

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
        folder: Quickstart folder with the runs' metrics and the export.
        before: Held-out evaluation of the base model.
        after: Held-out evaluation of the chat model.
        dialogues: Conversations with the chat model.
        seconds: Total duration.
        peak_bytes: Peak memory.
    """
    metrics = {stage: read_metrics(folder / run / METRICS_FILE) for stage, run in STAGES}
    _write_plots(folder, metrics)
    config = GPTConfig.from_dict(read_json(folder / "export" / "config.json"))
    markdown = fill(
        "quickstart.md",
        config=config,
        num_parameters=f"{count_parameters(config).total:,}",
        minutes=seconds / 60,
        memory=memory_text(peak_bytes),
        stages=[_stage_row(stage, rows) for stage, rows in metrics.items()],
        accuracies=[
            *(
                [name, _percent(before["categories"].get(name)), _percent(result)]
                for name, result in after["categories"].items()
            ),
            ["all", f"{before['accuracy']:.1%}", f"{after['accuracy']:.1%}"],
        ],
        dialogues=[[_message(message) for message in dialogue] for dialogue in dialogues],
        failures=after["failures"][:20],
        export=Markdown(folder / "export"),
    )
    with atomic_write(folder / "report.md", "w", encoding="utf-8") as file:
        file.write(markdown)


def _write_plots(folder: Path, metrics: dict[str, dict[int, dict[str, float]]]) -> None:
    for name, column, label in (
        ("loss", "train_loss", "training loss, nats per token"),
        ("bpb", "val_bpb", "validation, bits per byte"),
    ):
        curves = {stage: _column(rows, column) for stage, rows in metrics.items()}
        plot_curves(folder / f"{name}.png", f"{label} over the quickstart", label, curves)


def _column(rows: dict[int, dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
    return [float(step) for step, _ in points], [value for _, value in points]


def _stage_row(stage: str, rows: dict[int, dict[str, float]]) -> list[object]:
    steps, values = _column(rows, "val_bpb")
    if not values:
        return [stage, max(rows, default=0), "", ""]
    return [stage, f"{steps[-1]:.0f}", f"{values[0]:.4f}", f"{values[-1]:.4f}"]


def _percent(result: dict[str, Any] | None) -> str:
    return "" if result is None else f"{result['accuracy']:.1%} ({result['correct']}/{result['count']})"


def _message(message: dict[str, Any]) -> dict[str, str]:
    content = message["content"]
    return {"role": message["role"], "text": content if isinstance(content, str) else readable(content)}

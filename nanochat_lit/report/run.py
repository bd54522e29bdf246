"""Reports on runs, and on the quickstart."""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nanochat_lit.common.hardware import memory_text
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.evaluation.samples import readable
from nanochat_lit.evaluation.score_report import headline, table_rows
from nanochat_lit.evaluation.statistics import wilson_interval
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.report.page import Markdown, curves_png, fill
from nanochat_lit.report.run_folder import RunFolder, read_run

STAGES = {
    "pretrain": "pretraining",
    "sft": "fine-tuning",
    "rl": "reinforcement learning",
    "dpo": "preferences",
    "distill": "distillation",
}
SAMPLES_LIMIT = 6000
"""Maximum number of characters of samples on the page; samples.md has the rest."""


def runs_page(runs: Sequence[RunFolder], price_per_hour: float) -> tuple[str, dict[str, bytes]]:
    """Return the page on runs as Markdown, and its images; several runs are compared in the first table.

    The price is in US dollars per device-hour; 0 omits the cost.
    """
    is_alone = len(runs) == 1
    images = curve_plots(runs) if is_alone else curve_plots(runs, against="tokens")
    comparison, differences = ([], []) if is_alone else _comparison(runs, price_per_hour)
    markdown = fill(
        "runs.md",
        runs=[_run_values(run, price_per_hour, is_alone=is_alone) for run in runs],
        heading=["", *(run.name for run in runs)],
        comparison=comparison,
        differences=differences,
        images=list(images),
    )
    return markdown, images


def _comparison(runs: Sequence[RunFolder], price_per_hour: float) -> tuple[list[list[str]], list[list[str]]]:
    """Return tables of the results side by side and of the differing settings."""
    facts = [dict(_facts(run, price_per_hour)) for run in runs]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    rows = [[name, *(fact.get(name, "") for fact in facts)] for name in names]
    metrics = dict.fromkeys(name for run in runs for name in run.evaluations)
    for metric in metrics:
        reports = [run.evaluations.get(metric) for run in runs]
        rows.append([metric, *("" if report is None else _evaluation(metric, report)["score"] for report in reports)])
    settings = [run.settings for run in runs]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    different = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    return rows, [[key, *(setting.get(key, "") for setting in settings)] for key in different]


def _run_values(run: RunFolder, price_per_hour: float, *, is_alone: bool) -> dict[str, Any]:
    kind = run.settings.get("model.class_path", "").rpartition(".")[2]
    stage = run.provenance.get("stage") or kind.removesuffix("Module").lower()
    return {
        "is_alone": is_alone,
        "level": Markdown("##" if is_alone else "###"),
        "name": run.name,
        "stage": STAGES.get(str(stage), "training").capitalize(),
        "shape": run.shape,
        "counts": None if run.shape is None else count_parameters(run.shape),
        "depth": run.settings.get("model.depth"),
        "base": run.settings.get("model.base"),
        "facts": _facts(run, price_per_hour),
        "commands": _commands(run),
        "data": _data_rows(run),
        "scores": [_evaluation(name, report) for name, report in run.evaluations.items()],
        "samples": _samples(run),
        "system": _system_rows(run),
        "settings": list(run.settings.items()),
    }


def curve_plots(runs: Sequence[RunFolder], against: str = "step") -> dict[str, bytes]:
    """Plot loss, validation metrics, learning rates and throughput over steps or another column of the metrics.

    One curve per run; a single run shows the learning rates of every group.
    """
    plots: dict[str, bytes] = {}

    def add(name: str, label: str, column: str, *, log: bool = True) -> None:
        curves = {run.name: run.curve(column, against) for run in runs}
        curves = {key: curve for key, curve in curves.items() if curve[0]}
        if curves:
            plots[name] = curves_png(name, label, curves, against, log_y=log)

    add("training loss", "nats per token, moving average", "train_loss_ema")
    add("validation, bits per byte", "bits per byte", "val_bpb")
    add("validation accuracy", "fraction of correct answers", "val_accuracy", log=False)
    add("preference accuracy", "fraction of held-out pairs", "val_preference_accuracy", log=False)
    add("win rate", "against the base", "val_win_rate", log=False)
    add("divergence from the base", "nats per token", "val_kl", log=False)
    add("reward", "mean reward", "reward", log=False)
    if len(runs) == 1:
        columns = dict.fromkeys(
            column for row in runs[0].metrics.values() for column in row if column.startswith("lr/")
        )
        rates = {column.removeprefix("lr/"): runs[0].curve(column, against) for column in columns}
        if rates:
            plots["learning rates"] = curves_png("learning rates", "learning rate", rates, against)
    else:
        add("learning rate", "fraction of the maximum", "lr_multiplier", log=False)
    add("throughput", "tokens per second", "tokens_per_s", log=False)
    if len(runs) > 1:
        flops = {run.name: run.curve("val_bpb", "total_flops") for run in runs if run.curve("val_bpb")[0]}
        after_start = {name: (places[1:], values[1:]) for name, (places, values) in flops.items() if len(places) > 1}
        if after_start:
            name = "validation by compute"
            plots[name] = curves_png(name, "bits per byte", after_start, "FLOPs", log_x=True)
    return plots


def _facts(run: RunFolder, price_per_hour: float) -> list[tuple[str, str]]:
    planned = run.plan.get("num_steps")
    facts = [("steps", f"{run.num_steps:,}" + (f" of {planned:,}" if isinstance(planned, int) else ""))]
    last = run.last
    if "tokens" in last:
        facts.append(("tokens", f"{last['tokens']:,.0f}"))
    if "total_flops" in last:
        facts.append(("FLOPs", f"{last['total_flops']:.3g}"))
    if "train_loss_ema" in last:
        facts.append(("training loss at the end", f"{last['train_loss_ema']:.4f} nats per token"))
    values = run.curve(run.figure)[1]
    if values:
        best = min(values) if run.figure == "val_bpb" else max(values)
        facts.append((f"{run.figure}: before, end, best", f"{values[0]:.4f}, {values[-1]:.4f}, {best:.4f}"))
    hours = run.total() / 3600
    if hours:
        facts.append(("training time", _duration(run.total())))
        facts.append(("device hours", f"{hours * run.world_size:.3g} ({run.world_size} device(s))"))
        if price_per_hour:
            facts.append(
                ("cost", f"${hours * run.world_size * price_per_hour:,.2f} at ${price_per_hour:g} per device-hour")
            )
    if (wall := _wall_clock_s(run)) is not None:
        facts.append(("time from first start to last end", _duration(wall)))
    for name, column, style in (
        ("tokens/s, median", "tokens_per_s", "{:,.0f}"),
        ("MFU, median", "mfu", "{:.1%}"),
        ("waiting for data, median", "data_wait", "{:.1%}"),
    ):
        if not math.isnan(value := run.median(column)):
            facts.append((name, style.format(value)))
    memory = run.curve("memory_gib")[1]
    return [*facts, ("peak memory", f"{max(memory):.2f} GiB")] if memory else facts


def _commands(run: RunFolder) -> str:
    lines = []
    for session in run.sessions:
        end = session.get("end") or "no end recorded: in progress, or killed"
        first, last = session.get("first_step"), session.get("last_step")
        lines.append(f"# {session.get('started_at')}, from step {first} to {'?' if last is None else last}, {end}")
        lines.append(shlex.join(map(str, session.get("command") or ["?"])))
    return "\n".join(lines)


def _data_rows(run: RunFolder) -> list[list[str]]:
    rows = [[name, value] for name, value in run.settings.items() if name.startswith("data.")]
    path = run.settings.get("data.path")
    if path and Path(path).exists():
        rows.append([f"{path} (current contents)", _size(Path(path))])
    if tokens := run.last.get("tokens"):
        rows.append(["tokens trained on", f"{tokens:,.0f}"])
    if fingerprint := run.provenance.get("tokenizer_fingerprint"):
        rows.append(["tokenizer", str(fingerprint)])
    return rows


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{len(files)} file(s), {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def _evaluation(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return the main value of an evaluation, a sentence on it, and its table."""
    try:
        return SCORE_TABLES[name](report)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration, ZeroDivisionError):
        return {"score": "?", "text": f"{report['file']} is not in a supported format.", "rows": []}


def _task_scores(report: dict[str, Any]) -> dict[str, Any]:
    heading, *rows = table_rows(report)
    main, partial = next(iter(report["scores"].values())), ", partial" if report["is_partial"] else ""
    score = "?" if main["value"] is None else f"{main['value']:.4f} ({main['low']:.4f} to {main['high']:.4f}{partial})"
    return {"score": score, "text": " ".join(headline(report)), "heading": heading, "rows": rows}


def _tiny_world_scores(report: dict[str, Any]) -> dict[str, Any]:
    counts = [(name, entry["correct"], entry["count"]) for name, entry in report["categories"].items()]
    counts.append(("all", sum(correct for _, correct, _ in counts), sum(count for _, _, count in counts)))
    rows = []
    for name, correct, count in counts:
        low, high = wilson_interval(correct, count)
        rows.append([name, f"{correct / count:.1%}", f"{low:.1%} to {high:.1%}", f"{correct} of {count}"])
    text = "Held-out questions of the tiny world; intervals are Wilson's, 95%."
    heading = ["category", "right", "95% interval", "questions"]
    return {"score": f"{rows[-1][1]} ({rows[-1][2]})", "text": text, "heading": heading, "rows": rows}


def _bpb_scores(report: dict[str, Any]) -> dict[str, Any]:
    size = f"{report['documents']:,} documents ({report['bytes']:,} bytes)"
    text = f"{report['bpb']:.4f} bits per byte on {size} of {report['data']}."
    return {"score": f"{report['bpb']:.4f}", "text": text, "rows": []}


SCORE_TABLES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "core": _task_scores,
    "chat_core": _task_scores,
    "tiny_world": _tiny_world_scores,
    "bpb": _bpb_scores,
}


def _samples(run: RunFolder) -> list[str]:
    sections = [part.strip() for part in re.split(r"(?m)^(?=## Step \d+$)", run.samples) if part.strip()]
    shown = []
    for section in dict.fromkeys(sections[:1] + sections[-1:]):
        text = re.sub(r"(?m)^(?:## |- \*\*(.+?)\*\*)", r"\1", section)
        is_long = len(text) > SAMPLES_LIMIT
        shown.append(f"{text[:SAMPLES_LIMIT]}\n[truncated; see samples.md]" if is_long else text)
    return shown


def _system_rows(run: RunFolder) -> list[list[str]]:
    rows: list[list[str]] = []
    for session in run.sessions:
        machine = session.get("machine")
        facts = [[str(name), str(value)] for name, value in machine.items()] if isinstance(machine, dict) else []
        facts += [[name, str(session[name])] for name in ("device", "world_size", "compute_dtype") if name in session]
        rows += [fact for fact in facts if fact not in rows]
    return rows


def _wall_clock_s(run: RunFolder) -> float | None:
    try:
        first = datetime.fromisoformat(run.sessions[0]["started_at"])
        return (datetime.fromisoformat(run.sessions[-1]["ended_at"]) - first).total_seconds()
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def write_quickstart_report(
    folder: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    dialogues: list[list[dict[str, Any]]],
    seconds: float,
    peak_bytes: int,
) -> None:
    """Write report.md, loss.png and bpb.png."""
    runs = [read_run(folder / "pretrain", "pretraining"), read_run(folder, "fine-tuning")]
    for name, column, label in (
        ("loss", "train_loss", "training loss, nats per token"),
        ("bpb", "val_bpb", "validation, bits per byte"),
    ):
        with atomic_write(folder / f"{name}.png") as file:
            curves = {run.name: run.curve(column) for run in runs}
            file.write(curves_png(f"{label} over the quickstart", label, curves))
    config = runs[-1].shape
    assert config is not None  # fine-tuning has written its export
    markdown = fill(
        "quickstart.md",
        config=config,
        num_parameters=f"{count_parameters(config).total:,}",
        minutes=seconds / 60,
        memory=memory_text(peak_bytes),
        stages=[_stage_row(run) for run in runs],
        accuracies=[
            *(
                [name, _percent(before["categories"].get(name)), _percent(result)]
                for name, result in after["categories"].items()
            ),
            ["all", f"{before['accuracy']:.1%}", f"{after['accuracy']:.1%}"],
        ],
        dialogues=[
            [{"role": message["role"], "text": readable(message["content"])} for message in dialogue]
            for dialogue in dialogues
        ],
        failures=after["failures"][:20],
        export=Markdown(folder / "export"),
    )
    with atomic_write(folder / "report.md", "w") as file:
        file.write(markdown)


def _stage_row(run: RunFolder) -> list[object]:
    steps, values = run.curve("val_bpb")
    if not values:
        return [run.name, run.num_steps, "", ""]
    return [run.name, f"{steps[-1]:.0f}", f"{values[0]:.4f}", f"{values[-1]:.4f}"]


def _percent(result: dict[str, Any] | None) -> str:
    return "" if result is None else f"{result['accuracy']:.1%} ({result['correct']}/{result['count']})"

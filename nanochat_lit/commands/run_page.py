"""The blocks of a report on one or several runs."""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nanochat_lit.commands.run_folder import RunFolder
from nanochat_lit.evaluation.page import Block, Heading, Paragraph, Plots, Table, Verbatim
from nanochat_lit.evaluation.plots import curves_png
from nanochat_lit.evaluation.score_report import headline, table_rows
from nanochat_lit.evaluation.statistics import wilson_interval
from nanochat_lit.model.accounting import count_parameters

STAGES = {"pretrain": "pretraining", "sft": "fine-tuning", "rl": "reinforcement learning"}
CLASS_STAGES = {"PretrainModule": "pretrain", "SFTModule": "sft", "RLModule": "rl"}
SAMPLES_LIMIT = 6000
"""Characters of the last samples that the page shows; the rest is in samples.md."""


def report_blocks(runs: Sequence[RunFolder], price_per_hour: float) -> list[Block]:
    """The whole page.

    Args:
        runs: In the order of the page.
        price_per_hour: Dollars of a device for an hour; 0 leaves money out.
    """
    title = f"Report: {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"
    blocks: list[Block] = [Heading(text=title, level=1)]
    if len(runs) > 1:
        blocks += comparison_blocks(runs, price_per_hour)
        blocks += [Heading(text="Curves"), Plots(images=curve_plots(runs, against="tokens"))]
    for run in runs:
        blocks += run_blocks(run, price_per_hour, is_alone=len(runs) == 1)
    return blocks


def comparison_blocks(runs: Sequence[RunFolder], price_per_hour: float) -> list[Block]:
    """What the runs have reached, side by side, and in which settings they differ."""
    facts = [dict(_facts(run, price_per_hour)) for run in runs]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    rows = [[name, *(fact.get(name, "") for fact in facts)] for name in names]
    metrics = dict.fromkeys(name for run in runs for name in run.evaluations)
    rows += [[metric, *(_score(run.evaluations.get(metric)) for run in runs)] for metric in metrics]
    settings = [run.settings for run in runs]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    different = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    heading = ["", *(run.name for run in runs)]
    return [
        Heading(text="Side by side"),
        Table(heading=heading, rows=rows),
        Heading(text="Settings that differ"),
        Table(heading=heading, rows=[[key, *(setting.get(key, "") for setting in settings)] for key in different])
        if different
        else Paragraph(text="None."),
    ]


def run_blocks(run: RunFolder, price_per_hour: float, *, is_alone: bool) -> list[Block]:
    """Everything about one run; its plots only if no plots of all runs are above."""
    level = 2 if is_alone else 3
    blocks: list[Block] = [] if is_alone else [Heading(text=run.name)]
    blocks += [
        Paragraph(text=_what(run)),
        Heading(text="Result, time and cost", level=level),
        Table(heading=["", ""], rows=[list(fact) for fact in _facts(run, price_per_hour)]),
        Heading(text="Command", level=level),
        *_command_blocks(run),
        Heading(text="Data", level=level),
        Table(heading=["setting", "value"], rows=_data_rows(run)),
    ]
    if is_alone:
        blocks += [Heading(text="Curves"), Plots(images=curve_plots([run]))]
    blocks += [Heading(text="Scores", level=level), *_score_blocks(run)]
    blocks += [Heading(text="Samples", level=level), *_sample_blocks(run)]
    blocks += [Heading(text="System", level=level), *_system_blocks(run)]
    settings = [[name, value] for name, value in run.settings.items()]
    return [*blocks, Heading(text="All settings", level=level), Table(heading=["key", "value"], rows=settings)]


def curve_plots(runs: Sequence[RunFolder], against: str = "step") -> dict[str, bytes]:
    """Loss, figures of validations, learning rates and throughput, over steps or another column.

    Args:
        runs: One curve each; of a single run the learning rates of every group.
        against: "step" or a column of the metrics.
    """
    plots: dict[str, bytes] = {}

    def add(name: str, label: str, column: str, *, log: bool = True) -> None:
        curves = {run.name: run.curve(column, against) for run in runs}
        curves = {key: curve for key, curve in curves.items() if curve[0]}
        if curves:
            plots[name] = curves_png(name, label, curves, against, log_y=log)

    add("training loss", "nats per token, moving average", "train_loss_ema")
    add("validation, bits per byte", "bits per byte", "val_bpb")
    add("validation accuracy", "share of right answers", "val_accuracy", log=False)
    add("reward", "mean reward", "reward", log=False)
    if len(runs) == 1:
        columns = dict.fromkeys(
            column for row in runs[0].metrics.values() for column in row if column.startswith("lr/")
        )
        rates = {column.removeprefix("lr/"): runs[0].curve(column, against) for column in columns}
        if rates:
            plots["learning rates"] = curves_png("learning rates", "learning rate", rates, against)
    else:
        add("learning rate", "share of the highest", "lr_multiplier", log=False)
    add("throughput", "tokens per second", "tokens_per_s", log=False)
    if len(runs) > 1:
        flops = {run.name: run.curve("val_bpb", "total_flops") for run in runs if run.curve("val_bpb")[0]}
        after_start = {name: (places[1:], values[1:]) for name, (places, values) in flops.items() if len(places) > 1}
        if after_start:
            name = "validation by compute"
            plots[name] = curves_png(name, "bits per byte", after_start, "FLOPs", log_x=True)
    return plots


def _what(run: RunFolder) -> str:
    stage = run.provenance.get("stage") or CLASS_STAGES.get(str(_key(run, "model.class_path")).rpartition(".")[2], "")
    stage = STAGES.get(str(stage), "training")
    shape = run.shape
    if shape is None:
        model = f"a model of depth {_key(run, 'model.depth')}" if _key(run, "model.depth") else "a model"
    else:
        counts = count_parameters(shape)
        model = (
            f"a GPT of {shape.n_layer} layers, width {shape.n_embd}, {shape.n_head} heads ({shape.n_kv_head} for keys and "
            f"values), vocabulary {shape.vocab_size:,}, context {shape.sequence_len:,}: {counts.total:,} parameters, of which "
            f"{counts.scaling:,} count for scaling"
        )
    base = _key(run, "model.base")
    start = f", starting from {base}" if base else ""
    ended = "" if run.shape is not None else " It has left no export: it is under way, was stopped, or was cleaned up."
    return f"{stage.capitalize()} of {model}{start}.{ended}"


def _facts(run: RunFolder, price_per_hour: float) -> list[tuple[str, str]]:
    """What was reached, and what it took; what is not known is left out."""
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
    hours = run.training_s / 3600
    if hours:
        facts.append(("time of training", _duration(run.training_s)))
        facts.append(("device hours", f"{hours * run.world_size:.3g} ({run.world_size} device(s))"))
        if price_per_hour:
            facts.append(
                ("cost", f"${hours * run.world_size * price_per_hour:,.2f} at ${price_per_hour:g} an hour and device")
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


def _command_blocks(run: RunFolder) -> list[Block]:
    if not run.sessions:
        return [Paragraph(text="Not recorded.")]
    lines = []
    for session in run.sessions:
        end = session.get("end") or "no end recorded: under way, or killed"
        first, last = session.get("first_step"), session.get("last_step")
        lines.append(f"# {session.get('started_at')}, from step {first} to {'?' if last is None else last}, {end}")
        lines.append(shlex.join(map(str, session.get("command") or ["?"])))
    return [Verbatim(text="\n".join(lines))]


def _data_rows(run: RunFolder) -> list[list[str]]:
    rows = [[name, value] for name, value in run.settings.items() if name.startswith("data.")]
    for name in ("data.path",):
        value = run.settings.get(name)
        if value and Path(value).exists():
            rows.append([f"{value} as it is now", _size(Path(value))])
    if tokens := run.last.get("tokens"):
        rows.append(["tokens trained on", f"{tokens:,.0f}"])
    if fingerprint := run.provenance.get("tokenizer_fingerprint"):
        rows.append(["tokenizer", str(fingerprint)])
    return rows


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{len(files)} file(s), {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def _score_blocks(run: RunFolder) -> list[Block]:
    blocks = [block for name, report in run.evaluations.items() for block in _evaluation_blocks(name, report)]
    return blocks or [Paragraph(text="None was measured; what `nanochat-lit evaluate` leaves appears here.")]


def _evaluation_blocks(name: str, report: dict[str, Any]) -> list[Block]:
    try:
        return SCORE_TABLES[name](report)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return [Paragraph(text=f"{report['file']} is not a result that this report understands.")]


def _task_scores(report: dict[str, Any]) -> list[Block]:
    heading, *rows = table_rows(report)
    return [Paragraph(text=" ".join(headline(report))), Table(heading=heading, rows=rows)]


def _tiny_world_scores(report: dict[str, Any]) -> list[Block]:
    def row(name: str, correct: int, count: int) -> list[str]:
        low, high = wilson_interval(correct, count)
        return [name, f"{correct / count:.1%}", f"{low:.1%} to {high:.1%}", f"{correct} of {count}"]

    entries = report["categories"].items()
    rows = [row(name, entry["correct"], entry["count"]) for name, entry in entries]
    rows.append(row("all", sum(e["correct"] for _, e in entries), sum(e["count"] for _, e in entries)))
    return [
        Paragraph(text="Held-out questions of the tiny world; intervals are Wilson's, 95%."),
        Table(heading=["category", "right", "95% interval", "questions"], rows=rows),
    ]


def _bpb_scores(report: dict[str, Any]) -> list[Block]:
    text = f"{report['bpb']:.4f} bits per byte on {report['documents']:,} documents ({report['bytes']:,} bytes) of {report['data']}."
    return [Paragraph(text=text)]


SCORE_TABLES: dict[str, Callable[[dict[str, Any]], list[Block]]] = {
    "core": _task_scores,
    "chat_core": _task_scores,
    "tiny_world": _tiny_world_scores,
    "bpb": _bpb_scores,
}


def _score(report: dict[str, Any] | None) -> str:
    """An evaluation's main number in a cell."""
    if report is None:
        return ""
    try:
        if "scores" in report:
            score = next(iter(report["scores"].values()))
            partial = ", partial" if report["is_partial"] else ""
            return f"{score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f}{partial})"
        if "categories" in report:
            counts = list(report["categories"].values())
            correct, count = (sum(entry[key] for entry in counts) for key in ("correct", "count"))
            low, high = wilson_interval(correct, count)
            return f"{correct / count:.1%} ({low:.1%} to {high:.1%})"
        return f"{report['bpb']:.4f}"
    except (KeyError, TypeError, ValueError, StopIteration, ZeroDivisionError):
        return "?"


def _sample_blocks(run: RunFolder) -> list[Block]:
    """The samples of the first and the last validation: what training has changed."""
    sections = [part.strip() for part in re.split(r"(?m)^(?=## Step \d+$)", run.samples) if part.strip()]
    if not sections:
        return [Paragraph(text="None were written.")]
    shown = dict.fromkeys([sections[0], sections[-1]])
    return [Verbatim(text=_shortened(section)) for section in shown]


def _shortened(text: str) -> str:
    return text if len(text) <= SAMPLES_LIMIT else f"{text[:SAMPLES_LIMIT]}\n[cut here; the whole is in samples.md]"


def _system_blocks(run: RunFolder) -> list[Block]:
    rows: list[list[str]] = []
    for session in run.sessions:
        machine = session.get("machine")
        facts = [[str(name), str(value)] for name, value in machine.items()] if isinstance(machine, dict) else []
        facts += [[name, str(session[name])] for name in ("device", "world_size", "compute_dtype") if name in session]
        rows += [fact for fact in facts if fact not in rows]
    return [Table(heading=["", ""], rows=rows)] if rows else [Paragraph(text="Not recorded.")]


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


def _key(run: RunFolder, name: str) -> str:
    return run.settings.get(name, "")

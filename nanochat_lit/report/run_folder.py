"""Reader of run folders. Files may be missing if a run is in progress, old, or was moved."""

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.model import GPTConfig
from nanochat_lit.training.checkpoint_files import flatten
from nanochat_lit.training.run_records import METRICS_FILE, read_metrics, read_sessions

FIGURES = ("val_bpb", "val_accuracy", "val_preference_accuracy")
"""Validation metrics by stage."""


class RunFolder(NamedTuple):
    """Contents of a run folder."""

    folder: Path  # path of the folder
    name: str  # name in the report
    config: dict[str, Any]  # resolved config.yaml; empty if missing
    plan: dict[str, Any]  # derived values of plan.json; empty if missing
    shape: GPTConfig | None  # model configuration of the export; None without an export
    provenance: dict[str, Any]  # provenance of the export; empty without an export
    metrics: dict[int, dict[str, float]]  # rows of metrics.csv by step
    sessions: list[dict[str, Any]]  # commands, times and machines of the sessions
    evaluations: dict[str, dict[str, Any]]  # newest result of each evaluation: core, chat_core, tiny_world, bpb
    samples: str  # text of samples.md; empty if missing

    def curve(self, column: str, against: str = "step") -> tuple[list[float], list[float]]:
        """Return the x values (steps or another column) and values of a metrics column."""
        rows = [(step, row) for step, row in sorted(self.metrics.items()) if math.isfinite(row.get(column, math.nan))]
        values = [row[column] for _, row in rows]
        if against == "step":
            return [float(step) for step, _ in rows], values
        per_step = next((row[against] / step for step, row in self.metrics.items() if step and against in row), 0.0)
        return [step * per_step for step, _ in rows], values

    @property
    def figure(self) -> str:
        """Name of the validation metric."""
        found = [name for name in FIGURES if any(name in row for row in self.metrics.values())]
        return found[-1] if found else FIGURES[0]

    @property
    def last(self) -> dict[str, float]:
        """Last row of metrics of a training step."""
        rows = [row for _, row in sorted(self.metrics.items()) if "train_loss" in row]
        return rows[-1] if rows else {}

    @property
    def num_steps(self) -> int:
        """Number of completed steps."""
        return max(self.metrics, default=0)

    def total(self, clock: str = "seconds") -> float:
        """Training time over all sessions, seconds; the clocks of the metrics restart with each session."""
        total, before = 0.0, 0.0
        for _, row in sorted(self.metrics.items()):
            now = row.get(clock)
            if now is None:
                continue
            total += now - before if now >= before else now
            before = now
        return total

    @property
    def world_size(self) -> int:
        """Number of devices in the last session."""
        size = self.sessions[-1].get("world_size") if self.sessions else None
        return size if isinstance(size, int) else 1

    def median(self, column: str) -> float:
        """Return the median of a metrics column without the first row (compilation); NaN without values."""
        values = self.curve(column)[1]
        return statistics.median(values[1:] or values) if values else math.nan

    @property
    def settings(self) -> dict[str, str]:
        """Return every key of the recipe that is set, by full name."""
        given = {name: value for name, value in flatten(self.config).items() if value not in (None, "", [], {})}
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


def read_run(folder: str | Path, name: str | None = None) -> RunFolder:
    """Read a run folder; UserError if it is missing or has neither metrics nor a configuration."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; give run folders, such as runs/quickstart")
    config, metrics = _read_yaml(folder / "config.yaml"), read_metrics(folder / METRICS_FILE)
    if not config and not metrics:
        raise UserError(
            f"{folder} has no config.yaml and no {METRICS_FILE}; give a run folder, such as runs/quickstart"
        )
    shape = _read_object(folder / "export" / "config.json")
    samples = folder / "samples.md"
    return RunFolder(
        folder=folder,
        name=name or folder.resolve().name,
        config=config,
        plan=_read_object(folder / "plan.json"),
        shape=GPTConfig.from_dict(shape) if shape else None,
        provenance=_read_object(folder / "export" / "provenance.json"),
        metrics=metrics,
        sessions=read_sessions(folder),
        evaluations=_read_evaluations(folder),
        samples=samples.read_text("utf-8", errors="replace") if samples.is_file() else "",
    )


def read_runs(folders: list[str]) -> list[RunFolder]:
    """Read several run folders, with unique names."""
    names = [Path(folder).resolve().name for folder in folders]
    return [
        read_run(folder, name if names.count(name) == 1 else folder)
        for folder, name in zip(folders, names, strict=True)
    ]


def _read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the evaluations during training, then those of the finished export, which take precedence."""
    found: dict[str, dict[str, Any]] = {}
    for path in [*sorted(folder.glob("evaluation/step*/*.json")), *sorted(folder.glob("export_evaluation/*.json"))]:
        content = _read_object(path)
        if content and not path.stem.endswith("_progress"):
            found[path.stem] = {**content, "file": str(path.relative_to(folder))}
    return found


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}

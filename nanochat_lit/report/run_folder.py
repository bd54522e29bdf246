"""What a run folder tells about its run. A folder may lack parts: a run may be under way, old, or moved from elsewhere."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.model import GPTConfig
from nanochat_lit.training.callbacks.session_record import read_sessions
from nanochat_lit.training.metrics_file import METRICS_FILE, read_metrics

FIGURES = ("val_bpb", "val_accuracy")
"""Figures of validations, by stage."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run as its folder has it."""

    folder: Path
    """Where it is."""
    name: str
    """What the report calls it."""
    config: dict[str, Any]
    """Its resolved config.yaml; empty if there is none."""
    plan: dict[str, Any]
    """Derived numbers of its plan.json; empty if there is none."""
    shape: GPTConfig | None
    """Of the export's model; None without an export."""
    provenance: dict[str, Any]
    """Of the export; empty without one."""
    metrics: dict[int, dict[str, float]]
    """Rows of metrics.csv by step."""
    sessions: list[dict[str, Any]]
    """Commands, times and machines."""
    evaluations: dict[str, dict[str, Any]]
    """Newest result of each evaluation: core, chat_core, tiny_world, bpb."""
    samples: str
    """Text of samples.md; empty if there is none."""

    def curve(self, column: str, against: str = "step") -> tuple[list[float], list[float]]:
        """Values of a column of the metrics, and the steps (or another column's values) at which it has them.

        Args:
            column: Of metrics.csv.
            against: "step", or a column that grows with the steps: where a row lacks it, it is in proportion to the steps.
        """
        rows = [(step, row) for step, row in sorted(self.metrics.items()) if math.isfinite(row.get(column, math.nan))]
        values = [row[column] for _, row in rows]
        if against == "step":
            return [float(step) for step, _ in rows], values
        per_step = next((row[against] / step for step, row in self.metrics.items() if step and against in row), 0.0)
        return [step * per_step for step, _ in rows], values

    @property
    def figure(self) -> str:
        """The figure of its validations."""
        found = [name for name in FIGURES if any(name in row for row in self.metrics.values())]
        return found[-1] if found else FIGURES[0]

    @property
    def last(self) -> dict[str, float]:
        """The newest row of metrics of a training step."""
        rows = [row for _, row in sorted(self.metrics.items()) if "train_loss" in row]
        return rows[-1] if rows else {}

    @property
    def num_steps(self) -> int:
        """Steps that were done."""
        return max(self.metrics, default=0)

    @property
    def training_s(self) -> float:
        """Seconds of training over all sessions; the clock of the metrics starts anew with each."""
        total, before = 0.0, 0.0
        for _, row in sorted(self.metrics.items()):
            now = row.get("seconds")
            if now is None:
                continue
            total += now - before if now >= before else now
            before = now
        return total

    @property
    def world_size(self) -> int:
        """Devices of the last session."""
        size = self.sessions[-1].get("world_size") if self.sessions else None
        return size if isinstance(size, int) else 1

    def median(self, column: str) -> float:
        """Median of a column of the metrics, the first row left out (it compiles); NaN without values."""
        values = self.curve(column)[1]
        return statistics.median(values[1:] or values) if values else math.nan

    @property
    def settings(self) -> dict[str, str]:
        """Every key of the recipe that is set, by its full name."""
        return {name: _plain(value) for name, value in flatten(self.config).items() if value not in (None, "", [], {})}


def read_run(folder: str | Path, name: str | None = None) -> RunFolder:
    """Read what is there.

    Args:
        folder: A run folder.
        name: What to call the run; None takes the folder's name.

    Raises:
        UserError: If the folder is missing, or has neither metrics nor a config.
    """
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
    """Read several, each under a name of its own.

    Args:
        folders: Run folders.
    """
    names = [Path(folder).resolve().name for folder in folders]
    return [
        read_run(folder, name if names.count(name) == 1 else folder)
        for folder, name in zip(folders, names, strict=True)
    ]


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping by their dotted names, `init_args` left out as on the command line.

    Args:
        tree: Of a config.
        path: Before every name.
    """
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        place = path if name == "init_args" else f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, place)
        else:
            leaves[place] = value
    return leaves


def _read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """Of the run while it trained, then those of its finished export, which count more."""
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


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

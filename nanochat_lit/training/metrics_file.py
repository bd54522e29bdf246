"""A logger that writes one CSV file into the run folder and appends to it when a run resumes."""

import csv
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.paths import atomic_write

METRICS_FILE = "metrics.csv"


class MetricsFile(Logger):
    """Writes one row per step to `metrics.csv`; new metrics add columns.

    Lightning's CSVLogger deletes the file of an earlier run in the same folder, so a resumed run would lose its
    history. This logger keeps the rows up to the step it resumes from; a new run starts an empty file.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS_FILE
        self._start_step = 0
        self._rows: dict[int, dict[str, float]] | None = None
        self._columns: list[str] = ["step"]

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # the run folder has config.yaml

    def start(self, step: int) -> None:
        """Set the step that the run resumes from (0 for a new run); call it before the first row."""
        self._start_step = step

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of this step."""
        metrics = {name: value for name, value in metrics.items() if name != "epoch" and not math.isnan(value)}
        if not metrics or step is None or not is_rank_zero():
            return
        if self._rows is None:
            earlier = read_metrics(self.path) if self._start_step else {}
            self._rows = {at: row for at, row in earlier.items() if at <= self._start_step}
            for row in self._rows.values():
                self._columns += [name for name in row if name not in self._columns]
        is_new_row, old_columns = step not in self._rows, len(self._columns)
        self._rows.setdefault(step, {}).update(metrics)
        self._columns += [name for name in metrics if name not in self._columns]
        if is_new_row and len(self._columns) == old_columns and len(self._rows) > 1:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file).writerow({"step": step, **metrics})
        else:
            self.save()

    def save(self) -> None:
        """Rewrite the whole file."""
        if self._rows is None or not is_rank_zero():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path, "w", encoding="utf-8") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in self._rows.items())

    def _writer(self, file: Any) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, lineterminator="\n")


def read_metrics(path: str | Path) -> dict[int, dict[str, float]]:
    """Return the rows of a metrics.csv by step, without empty cells; empty if the file is missing."""
    path = Path(path)
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            int(row["step"]): {name: float(value) for name, value in row.items() if name != "step" and value}
            for row in csv.DictReader(file)
        }

"""Records of a run in its folder: metrics.csv, sessions.json and plan.json."""

import contextlib
import csv
import math
import os
import platform
import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from nanochat_lit import __version__
from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, read_json, write_json
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.optim import TrainingPlan

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule

METRICS_FILE = "metrics.csv"
SESSIONS_FILE = "sessions.json"
PLAN_FILE = "plan.json"


class MetricsFile(Logger):
    """Writes one row per step to `metrics.csv`; new metrics add columns.

    Lightning's CSVLogger deletes the file of an earlier run in the same folder, so a resumed run would lose its
    history. This logger keeps the rows up to the step it resumes from; a new run starts an empty file.
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


def describe_machine() -> dict[str, str]:
    """Return names and values for a report, without host name, user or address."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:(.*)", cpuinfo.read_text("utf-8", "replace") if cpuinfo.exists() else "", re.M)
    processor = named[1].strip() if named else platform.processor() or platform.machine()
    description = {"processor": f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"}
    if hasattr(os, "sysconf"):  # not on Windows
        description["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    if torch.cuda.is_available():
        counts = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        description["GPUs"] = ", ".join(f"{count} x {name}" for name, count in counts.items())
        description["CUDA"] = str(torch.version.cuda)
    description["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}"
    return {**description, "versions": f"nanochat-lit {__version__}, {versions}"}


class SessionRecord(Callback):
    """Adds an entry to `sessions.json` when training starts or resumes, and records how it ended."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        self.command = list(command)
        self._sessions: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        earlier = read_sessions(Path(trainer.default_root_dir)) if trainer.global_step else []
        step = trainer.global_step
        session = {
            "command": self.command,
            "started_at": _now(),
            "ended_at": None,
            "end": None,
            "first_step": step,
            "last_step": None,
            "world_size": trainer.world_size,
            "device": trainer.strategy.root_device.type,
            "compute_dtype": str(cast("LanguageModule", pl_module).model.compute_dtype).removeprefix("torch."),
            "machine": describe_machine(),
        }
        self._sessions = [*earlier, session]
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_whole = trainer.global_step >= cast("LanguageModule", pl_module).plan.num_steps
        self._end(trainer, "finished" if is_whole else "stopped")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(trainer, f"stopped by {type(exception).__name__}")

    def _end(self, trainer: Trainer, how: str) -> None:
        if self._sessions:
            self._sessions[-1] |= {"ended_at": _now(), "end": how, "last_step": trainer.global_step}
            with contextlib.suppress(OSError):  # a full disk must not mask the original error
                self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        write_json(Path(trainer.default_root_dir) / SESSIONS_FILE, self._sessions)


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Return the sessions of a run folder, oldest first; an empty list if the file is missing or invalid."""
    try:
        content = read_json(folder / SESSIONS_FILE)
    except UserError:
        return []
    is_ours = isinstance(content, list) and all(isinstance(entry, dict) for entry in content)
    return content if is_ours else []


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def save_plan(folder: Path, plan: TrainingPlan, micro_batch_size: int) -> None:
    """Write every derived value to plan.json of a run folder."""
    totals = {"total_tokens": plan.total_tokens, "total_flops": plan.total_flops}
    write_json(folder / PLAN_FILE, {**asdict(plan), **totals, "micro_batch_size": micro_batch_size})


def saved_micro_batch_size(folder: Path) -> int | None:
    """Return the micro-batch size in the plan of a run folder; None without a plan."""
    if not (folder / PLAN_FILE).exists():
        return None
    size = read_json(folder / PLAN_FILE).get("micro_batch_size")
    return size if isinstance(size, int) and size >= 1 else None


def print_plan(
    config: GPTConfig, plan: TrainingPlan, world_size: int, micro_batch_size: int, row_len: int, notes: dict[str, str]
) -> None:
    """Print a table of the derived quantities to stderr, followed by the notes (choices by name)."""
    counts = count_parameters(config)
    accumulate = plan.tokens_per_step // (micro_batch_size * row_len * world_size)
    batch = f"{micro_batch_size} sequences x {accumulate} micro-batches x {world_size} ranks"
    table = {
        "layers x width": f"{config.n_layer} x {config.n_embd}",
        "heads (kv)": f"{config.n_head} ({config.n_kv_head}) of {config.head_dim}",
        "vocabulary, context": f"{config.vocab_size:,}, {config.sequence_len:,}",
        "parameters": f"{counts.total:,} ({counts.scaling:,} count for scaling)",
        "FLOPs per token": f"{plan.flops_per_token:,}",
        "tokens per step": f"{plan.tokens_per_step:,} = {batch}",
        "steps": f"{plan.num_steps:,}",
        "tokens, FLOPs": f"{plan.total_tokens:,}, {plan.total_flops:.3g}",
        "learning-rate scale": f"{plan.lr_scale:.4g}",
        "weight decay": f"{plan.weight_decay:.4g}",
    }
    for name, value in (table | notes).items():
        print(f"  {name:<22}{value}", file=sys.stderr)

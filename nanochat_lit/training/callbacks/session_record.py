"""Records the commands, times and machines of a run."""

import contextlib
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit import __version__
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule

SESSIONS_FILE = "sessions.json"


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return names and values for a report, without host name, user or address.

    Args:
        cpuinfo: Linux's /proc/cpuinfo.
    """
    description = {
        "processor": f"{_processor_name(cpuinfo)}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
    }
    if hasattr(os, "sysconf"):  # not on Windows
        description["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        counts = {name: names.count(name) for name in dict.fromkeys(names)}
        description["GPUs"] = ", ".join(f"{count} x {name}" for name, count in counts.items())
        description["CUDA"] = str(torch.version.cuda)
    description["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    description["versions"] = (
        f"nanochat-lit {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    with contextlib.suppress(PackageNotFoundError):
        description["versions"] += f", lightning {version('lightning')}"
    return description


def _processor_name(cpuinfo: Path) -> str:
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class SessionRecord(Callback):
    """Adds an entry to `sessions.json` when training starts or resumes, and records how it ended.

    Args:
        command: The program's name and its arguments.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        self.command = list(command)
        self._sessions: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        earlier = read_sessions(Path(trainer.default_root_dir)) if trainer.global_step else []
        session = {
            "command": self.command,
            "started_at": _now(),
            "ended_at": None,
            "end": None,
            "first_step": trainer.global_step,
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
    """Return the sessions of a run, oldest first; an empty list if the file is missing or invalid.

    Args:
        folder: Run folder.
    """
    try:
        content = read_json(folder / SESSIONS_FILE)
    except UserError:
        return []
    is_ours = isinstance(content, list) and all(isinstance(entry, dict) for entry in content)
    return content if is_ours else []


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

"""Writes the portable export when training ends or is stopped, and prints the next command."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import os_error_text
from nanochat_lit.engine.export import save_export

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class ExportModel(Callback):
    """Writes `export/`, which chat, evaluate and the next stage read, into the run folder at the end of fit.

    Also writes it after Ctrl-C or SIGTERM, following the checkpoint. Resuming a checkpoint at its last step writes it
    too, because the earlier process may have ended before the export.

    Args:
        command: Command line that resumes a stopped run.
        is_part: Whether the run is part of another command, which prints the next step itself.
    """

    def __init__(self, command: Sequence[str] = (), is_part: bool = False) -> None:
        self.command = list(command)
        self.is_part = is_part

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_rank_zero():
            module = cast("LanguageModule", pl_module)
            self._write(trainer, module)
            if not self.is_part:
                print(f"next:   {_next_command(trainer.default_root_dir, module)}", file=sys.stderr)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not (isinstance(exception, SystemExit) and trainer.global_step and is_rank_zero()):
            return
        print(f"stopped after step {trainer.global_step}; its checkpoint is saved", file=sys.stderr)
        try:
            self._write(trainer, cast("LanguageModule", pl_module))
        except OSError as error:
            print(f"warning: no export ({os_error_text(error) or error})", file=sys.stderr)
        print(f"continue: {shlex.join(self.command)}", file=sys.stderr)

    def _write(self, trainer: Trainer, module: "LanguageModule") -> None:
        value = trainer.callback_metrics.get(module.figure)
        provenance = module.provenance() | {
            module.figure: None if value is None or not math.isfinite(value) else float(value)
        }
        folder = Path(trainer.default_root_dir) / "export"
        save_export(folder, module.model, module.tokenizer, module.generation, provenance)
        print(f"export: {folder}", file=sys.stderr)


def _next_command(run_dir: str, module: "LanguageModule") -> str:
    if module.speaks_chat:
        return shlex.join(["nanochat-lit", "chat", "--model", run_dir])
    command = shlex.join(["nanochat-lit", "fit", "--config", "recipes/sft.yaml", "--model.base", run_dir])
    return f"{command}  (a base model continues text; fine-tuning teaches it to answer)"

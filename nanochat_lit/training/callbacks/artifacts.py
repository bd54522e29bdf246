"""Samples and exports in the run folder."""

import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import os_error_text
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.engine.adapter import save_adapter
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import save_export
from nanochat_lit.evaluation.samples import BASE_PROMPTS, CHAT_PROMPTS, answer_messages, complete_texts

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


SAMPLE_TOKENS = 48
"""Maximum length of a sample."""


class SampleWriter(Callback):
    """After every validation, appends greedy answers to fixed prompts to `samples.md` in the run folder.

    If the module provides transcripts of its validation, writes those instead.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0 and is_rank_zero():
            self._path(trainer).unlink(missing_ok=True)  # from an earlier run in this folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or not is_rank_zero():
            return
        module = cast("LanguageModule", pl_module)
        lines = [f"\n## Step {trainer.global_step}\n", *(module.transcripts() or self._answers(module))]
        with atomic_write(self._path(trainer), "w", encoding="utf-8") as file:
            file.write(self._sections_before(trainer) + "\n".join(lines) + "\n")

    def _answers(self, module: "LanguageModule") -> list[str]:
        prompts, complete = BASE_PROMPTS, complete_texts
        if module.speaks_chat:
            prompts, complete = CHAT_PROMPTS, answer_messages
        was_training = module.model.training
        # no more slots than needed, to save memory
        engine = Engine(module.model.eval(), module.tokenizer, num_slots=len(prompts))
        answers = complete(engine, prompts, max_new_tokens=SAMPLE_TOKENS)
        module.model.train(was_training)
        return [f"- **{prompt}** {answer.strip()}" for prompt, answer in zip(prompts, answers, strict=True)]

    def _sections_before(self, trainer: Trainer) -> str:
        """Return the file's sections of earlier steps; drop later ones, which a resume has superseded."""
        path = self._path(trainer)
        if not path.exists():
            return ""
        sections = re.split(r"(?=\n## Step \d+\n)", path.read_text(encoding="utf-8"))
        return "".join(section for section in sections if section and int(section.split()[2]) < trainer.global_step)

    def _path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "samples.md"


class ExportModel(Callback):
    """Writes `export/`, which chat, evaluate and the next stage read, into the run folder at the end of fit.

    Also writes it after Ctrl-C or SIGTERM, following the checkpoint, with the command that resumes the run. Resuming a
    checkpoint at its last step writes it too, because the earlier process may have ended before the export. A run that
    is part of another command (`is_part`) leaves the next step to it.
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
        lora, base = getattr(module, "lora", None), getattr(module, "base", "")
        if lora is not None:
            save_adapter(folder.with_name("adapter"), module.model, lora, base)
            print(f"adapter: {folder.with_name('adapter')} (of {base}; the export has it merged)", file=sys.stderr)


def _next_command(run_dir: str, module: "LanguageModule") -> str:
    if module.speaks_chat:
        return shlex.join(["nanochat-lit", "chat", "--model", run_dir])
    command = shlex.join(["nanochat-lit", "fit", "--config", "recipes/sft.yaml", "--model.base", run_dir])
    return f"{command}  (a base model continues text; fine-tuning teaches it to answer)"

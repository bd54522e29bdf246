"""Actions at the start of a run, after validations (samples.md) and at its end (export/)."""

import gc
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import os_error_text
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.engine.adapter import save_adapter
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import save_export
from nanochat_lit.evaluation.samples import BASE_PROMPTS, CHAT_PROMPTS, answer_messages, complete_texts
from nanochat_lit.training.callbacks import StepCallback
from nanochat_lit.training.module import LanguageModule
from nanochat_lit.training.run_records import MetricsFile


class RunStart(Callback):
    """Validates a new run at step 0, and a resumed run whose checkpoint precedes a due validation.

    Checkpoints are written before validations, so a checkpoint at a validation step lacks the result.
    """

    def __init__(self) -> None:
        self._is_done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_done = True
        module = cast(LanguageModule, pl_module)
        module.check_validation()  # after the data were checked against the tokenizer
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.start(trainer.global_step)
        if trainer.global_step == 0 and trainer.limit_val_batches:
            measure_start(trainer, module)
        elif module.validates_after(trainer.global_step):
            validate(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_done:  # no steps were left, so training has not started
            self.on_train_start(trainer, pl_module)


def validate(trainer: Trainer) -> None:
    """Run the validation due after this step, with all its hooks."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True


@torch.no_grad()
def measure_start(trainer: Trainer, module: LanguageModule) -> None:
    """Validate before the first step, as the baseline of this stage."""
    module.model.eval()
    for index, batch in enumerate(cast(Any, module.datamodule.val_dataloader())):
        module.validation_step({name: tensor.to(module.device) for name, tensor in batch.items()}, index)
    module.model.train()
    figures = module.pop_validation_figures()
    module.log_figures(figures)
    if trainer.is_global_zero and module.figure in figures:
        print(f"step 0: {module.figure} {figures[module.figure]:.4f}", file=sys.stderr)


class FreezeGarbage(StepCallback):
    """Runs the garbage collector once after the first optimizer step and then freezes all existing objects.

    The modules of torch and Lightning alone create hundreds of thousands of objects, which every full collection would
    traverse. Later objects are collected as usual. The end of fit, normal or by an error, unfreezes them.
    """

    def __init__(self) -> None:
        self._is_frozen = False

    def on_step_end(self, trainer: Trainer, module: LanguageModule, step: int) -> None:
        if self._is_frozen or gc.get_freeze_count():
            return  # already frozen, here or by other code, which then unfreezes itself
        gc.collect()
        gc.freeze()
        self._is_frozen = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unfreeze()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._unfreeze()

    def _unfreeze(self) -> None:
        if self._is_frozen:
            gc.unfreeze()
            self._is_frozen = False


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
        module = cast(LanguageModule, pl_module)
        lines = [f"\n## Step {trainer.global_step}\n", *(module.transcripts() or self._answers(module))]
        with atomic_write(self._path(trainer), "w", encoding="utf-8") as file:
            file.write(self._sections_before(trainer) + "\n".join(lines) + "\n")

    def _answers(self, module: LanguageModule) -> list[str]:
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
            module = cast(LanguageModule, pl_module)
            self._write(trainer, module)
            if not self.is_part:
                print(f"next:   {_next_command(trainer.default_root_dir, module)}", file=sys.stderr)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not (isinstance(exception, SystemExit) and trainer.global_step and is_rank_zero()):
            return
        print(f"stopped after step {trainer.global_step}; its checkpoint is saved", file=sys.stderr)
        try:
            self._write(trainer, cast(LanguageModule, pl_module))
        except OSError as error:
            print(f"warning: no export ({os_error_text(error) or error})", file=sys.stderr)
        print(f"continue: {shlex.join(self.command)}", file=sys.stderr)

    def _write(self, trainer: Trainer, module: LanguageModule) -> None:
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


def _next_command(run_dir: str, module: LanguageModule) -> str:
    if module.speaks_chat:
        return shlex.join(["nanochat-lit", "chat", "--model", run_dir])
    command = shlex.join(["nanochat-lit", "fit", "--config", "recipes/sft.yaml", "--model.base", run_dir])
    return f"{command}  (a base model continues text; fine-tuning teaches it to answer)"

"""Actions at the start of a new or resumed run."""

import gc
import sys
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.training.callbacks import StepCallback
from nanochat_lit.training.run_records import MetricsFile

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class RunStart(Callback):
    """Validates a new run at step 0, and a resumed run whose checkpoint precedes a due validation.

    Checkpoints are written before validations, so a checkpoint at a validation step lacks the result.
    """

    def __init__(self) -> None:
        self._is_done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_done = True
        module = cast("LanguageModule", pl_module)
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
def measure_start(trainer: Trainer, module: "LanguageModule") -> None:
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

    def on_step_end(self, trainer: Trainer, module: "LanguageModule", step: int) -> None:
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

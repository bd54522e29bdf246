"""Excludes long-lived objects from Python's garbage collection."""

import gc
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer

from nanochat_lit.training.callbacks.step_callback import StepCallback

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


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

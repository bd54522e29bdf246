"""Keeps Python's garbage collector from walking through what lives as long as the run."""

import gc
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer

from nanochat_lit.training.callbacks.step_callback import StepCallback

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class FreezeGarbage(StepCallback):
    """After the first optimizer step collects once, then tells the collector to leave alone all that is there.

    The modules of torch and Lightning alone are some hundred thousand objects, which every full collection would visit
    again. What is made later is still collected. At the end of fit, also after an error, everything is as it was.
    """

    def __init__(self) -> None:
        self._is_frozen = False

    def on_step_end(self, trainer: Trainer, module: "LanguageModule", step: int) -> None:
        if self._is_frozen or gc.get_freeze_count():
            return  # done; or someone else has frozen, and it is for them to undo
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

"""Keeps Python's garbage collector from walking through what lives as long as the run."""

import gc
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class FreezeGarbage(Callback):
    """After the first optimizer step collects once, then tells the collector to leave alone all that is there.

    The modules of torch and Lightning alone are some hundred thousand objects, which every full collection would visit
    again. What is made later is still collected. At the end of fit, also after an error, everything is as it was.
    """

    def __init__(self) -> None:
        self._is_frozen = False
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._first_step or self._is_frozen or gc.get_freeze_count():
            return  # before the first step; done; or someone else has frozen, and it is for them to undo
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

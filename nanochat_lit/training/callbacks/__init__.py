"""Callbacks of a run; this file has the base class of those that act once per optimizer step."""

from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.training.module import LanguageModule


class StepCallback(Callback):
    """Callback with a hook for the end of an optimizer step. Overrides of `on_train_start` must call super."""

    _step_seen = 0

    def on_step_end(self, trainer: Trainer, module: LanguageModule, step: int) -> None:
        """Called once when an optimizer step is complete; `step` is their number so far."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step_seen:
            self._step_seen = trainer.global_step
            self.on_step_end(trainer, cast(LanguageModule, pl_module), self._step_seen)

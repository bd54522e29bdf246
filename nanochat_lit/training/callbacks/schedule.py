"""Applies the schedules to the optimizer before every step; stateless, so a resumed run continues exactly."""

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.optim.build import apply_schedule

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class HyperparameterSchedule(Callback):
    """Sets the learning rates, and Muon's momentum and weight decay, from the module's `schedule`."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module = cast("LanguageModule", pl_module)
        apply_schedule(trainer.optimizers[0], module.schedule, trainer.global_step, module.plan.weight_decay)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= cast("LanguageModule", pl_module).plan.num_steps:
            trainer.should_stop = True  # the loop then runs a final validation

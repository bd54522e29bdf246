"""Writes the schedules into the optimizer before every step; stateless, so a resumed run continues exactly."""

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class HyperparameterSchedule(Callback):
    """Sets learning rate, Muon momentum and Muon weight decay of every group from the module's `schedule`."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module = cast("LanguageModule", pl_module)
        schedule, step = module.schedule, trainer.global_step
        lr_multiplier, momentum = schedule.lr_multiplier(step), schedule.muon_momentum(step)
        decay_multiplier = schedule.weight_decay_multiplier(step)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * lr_multiplier
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = module.plan.weight_decay * decay_multiplier

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= cast("LanguageModule", pl_module).plan.num_steps:
            trainer.should_stop = True  # the loop then validates once more, so that the last figure is the final one

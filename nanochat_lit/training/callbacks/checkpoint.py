"""Checkpoints of a run: every so many steps, and always at the end."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint and `last.ckpt`, which is written at the final step too, before it is evaluated.

    Lightning's own writes `last.ckpt` only on multiples of `every_n_train_steps`: the steps after the last multiple would
    be lost to a resume, and to a fine-tuning that takes over the optimizer's state.

    Args:
        folder: Of the checkpoints.
        every: Steps between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            folder,
            filename="step{step:06d}",
            auto_insert_metric_name=False,
            every_n_train_steps=every,
            save_top_k=1,
            monitor="step",
            mode="max",
            save_last=True,
            enable_version_counter=False,  # last.ckpt is this run's, also in a folder that was used before
        )
        self.last_path = folder / "last.ckpt"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        is_end = trainer.global_step == trainer.max_steps
        if is_end and self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(self.last_path, weights_only=False)  # here the word means: all of the state
            self._last_global_step_saved = trainer.global_step

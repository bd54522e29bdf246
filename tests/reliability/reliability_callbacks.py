"""Callbacks that the recipes of these tests name: they run inside the processes that are to survive."""

import os
import random
import signal
from pathlib import Path

import numpy
import torch
from lightning.pytorch.callbacks import Callback

from nanochat_lit.training import checkpoint_files


class Draws(Callback):
    """Uses random numbers in every micro-batch and writes them down."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        line = f"{torch.rand(()).item()} {random.random()} {numpy.random.rand()}\n"  # noqa: NPY002
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)


class Signal(Callback):
    """Sends its own process a signal at one moment of the run; with several ranks rank 0 does.

    Args:
        moment: "start" (before training), "accumulation" (between the micro-batches of a step), "backward", "validation", or "write" (half of a
            checkpoint is in its temporary file).
        step: The step during which, or after which.
        name: The signal.
    """

    def __init__(self, moment: str, step: int, name: str = "SIGKILL") -> None:
        self.moment = moment
        self.step = step
        self.signum = getattr(signal, name)

    def _at(self, moment, trainer):
        if moment == self.moment and trainer.global_step == self.step and trainer.is_global_zero:
            self.moment = "over"
            os.kill(os.getpid(), self.signum)

    def on_fit_start(self, trainer, pl_module):
        self._at("start", trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches:
            self._at("accumulation", trainer)

    def on_after_backward(self, trainer, pl_module):
        self._at("backward", trainer)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._at("validation", trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.moment == "write" and trainer.global_step == self.step:
            checkpoint_files._save = self._half_save

    def _half_save(self, checkpoint, file):
        torch.save(checkpoint["state_dict"], file)
        file.flush()
        os.kill(os.getpid(), self.signum)


class Stop(Callback):
    """Asks the Trainer to stop after the first micro-batch of the step that follows `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and (batch_idx + 1) % trainer.accumulate_grad_batches:
            trainer.should_stop = True


class SmallDisk(Callback):
    """No file may grow beyond some bytes, from one step to another."""

    def __init__(self, first: int, last: int, limit: int) -> None:
        self.first, self.last, self.limit = first, last, limit

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # write() then fails, as it does on a full disk
        is_small = self.first <= trainer.global_step + 1 <= self.last
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit if is_small else hard, hard))

"""What the recipes of these tests name: callbacks that spoil the loss, and a logger that could be anybody's."""

import json
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger


class Spoil(Callback):
    """Changes the loss that the model gives, from one micro-batch on.

    Args:
        step: Number of the step, from 1.
        micro_batch: Which of its micro-batches, from 0.
        add: What is added to the loss: "nan" for one micro-batch, a number from there on.
        rank: The rank it happens on.
        path: Where the rows of the first spoilt batch are written.
    """

    def __init__(self, step: int, path: str, add: str = "nan", micro_batch: int = 0, rank: int = 0) -> None:
        self.step, self.micro_batch, self.rank = step, micro_batch, rank
        self.add = float(add)
        self.path = Path(path)
        self.hook = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        at = (trainer.global_step + 1, batch_idx % trainer.accumulate_grad_batches)
        if at == (self.step, self.micro_batch) and trainer.global_rank == self.rank:
            self.path.write_text(json.dumps(batch["inputs"].tolist()), encoding="utf-8")
            self.hook = pl_module.model.register_forward_hook(lambda module, args, loss: loss + self.add)
        elif self.hook is not None and self.add != self.add:
            self.hook.remove()


class Everything(Logger):
    """Writes what it is given into a file, as a logger of a service would send it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self):
        return "everything"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        assert not any(isinstance(value, torch.Tensor) for value in metrics.values())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, metrics]) + "\n")

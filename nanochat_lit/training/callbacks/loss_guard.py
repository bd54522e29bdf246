"""Stops a run whose loss is not finite or has exploded, and saves the offending batch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from nanochat_lit.common.distributed import is_rank_zero, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.training.callbacks import StepCallback
from nanochat_lit.training.callbacks.progress import SmoothedLoss, is_logged
from nanochat_lit.training.checkpoint_files import writer_of
from nanochat_lit.training.module import LanguageModule

BATCH_FILE = "bad_batch.md"

SHOWN_CHARS = 100
"""Characters of the first document to include in the error message."""

PATIENCE = 10
"""Number of consecutive high losses."""


class Explosion:
    """Detects ten consecutive steps whose loss exceeds the average of the earlier steps by a margin, nats.

    A spike lasts a few steps, caused by an unusual batch, and recovers by itself. High losses are excluded from the
    average, so that a slow climb does not raise it. A margin of 3 corresponds to tokens becoming 20 times less likely;
    0 disables detection.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.num_high = 0
        self._smoothed = SmoothedLoss()

    @property
    def usual(self) -> float:
        """Average of the losses that are not high."""
        return self._smoothed.value

    def found_in(self, losses: Sequence[float]) -> bool:
        """Add the losses of the next steps; return whether the last one belongs to an explosion."""
        for loss in losses:
            usual = self.usual
            if self.margin > 0 and not math.isnan(usual) and not loss <= usual + self.margin:
                self.num_high += 1
            else:
                self.num_high = 0
                self._smoothed.add(loss)
        return self.num_high >= PATIENCE

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"num_high": self.num_high, "smoothed": self._smoothed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.num_high = state["num_high"]
        self._smoothed.load_state_dict(state["smoothed"])


class WorstBatch:
    """Keeps the batch with the highest loss since `clear`; NaN counts as infinite, and ties keep the first.

    The selection runs on the device: adding a batch launches a few small kernels and no transfer.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        """Highest loss, a scalar on the device, infinite for NaN; None before the first batch."""
        self._inputs: Tensor | None = None
        self._step: Any = 0

    def add(self, loss: Tensor, inputs: Tensor, step: int) -> None:
        """Consider a batch of a step: its loss, a scalar, and inputs, (B, T), of the same shape for all batches."""
        loss = loss.detach().float().nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
        if self.loss is None or self._inputs is None:
            self.loss, self._inputs, self._step = loss, inputs, torch.full_like(loss, step, dtype=torch.int64)
            return
        is_worse = loss > self.loss
        self._inputs = torch.where(is_worse, inputs, self._inputs)
        self._step = torch.where(is_worse, step, self._step)
        self.loss = torch.maximum(loss, self.loss)

    def fetch(self) -> tuple[float, int, list[list[int]]]:
        """Return loss, step and sequences of token ids on the host; synchronizes."""
        assert self.loss is not None
        assert self._inputs is not None
        return float(self.loss), int(self._step), self._inputs.tolist()

    def clear(self) -> None:
        """Discard the batch."""
        self.loss = self._inputs = None


class LossGuard(StepCallback):
    """Raises a UserError when a micro-batch's loss is NaN or infinite, or when the loss explodes.

    Non-finite losses are detected before the optimizer steps. A single CPU rank checks every step; otherwise only
    logged steps are checked, where all ranks synchronize anyway. No checkpoint is written after such a loss.
    Overflowing float16 gradients do not trigger the guard, because the loss is finite.

    `Explosion` defines when a loss has exploded. The check runs at logged steps and requires that `RunProgress`
    precedes this callback.

    Writes to the run folder, as text, the batch with the highest loss of each rank. Writes the final state to
    `checkpoints/nan-stepNNNNNN.ckpt` or `checkpoints/exploded-stepNNNNNN.ckpt`, which `--ckpt_path last` ignores.

    Args:
        stop_on_explosion: Nats by which the loss must exceed its average to count as exploding; 0 disables the check.
        log_every: As in `RunProgress`.
    """

    def __init__(self, stop_on_explosion: float = 3.0, log_every: int = 10) -> None:
        self.log_every = log_every
        self.explosion = Explosion(stop_on_explosion)
        self.worst = WorstBatch()
        self.high_since: int | None = None
        """First step of the current run of high losses; None if the last loss was not high."""
        self._inputs: torch.Tensor | None = None
        self._is_stopping = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 and is_rank_zero():
            folder = Path(trainer.default_root_dir)
            for path in [*folder.glob("checkpoints/*-step*.ckpt"), folder / BATCH_FILE]:
                path.unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._inputs = batch["inputs"]

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._inputs is not None
        self.worst.add(cast(LanguageModule, pl_module).losses.latest, self._inputs, trainer.global_step + 1)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        module = cast(LanguageModule, pl_module)
        is_cheap = trainer.world_size == 1 and module.device.type == "cpu"
        if is_cheap or is_logged(trainer.global_step + 1, self.log_every, module):
            self._check_finite(trainer, module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.training and not self._is_stopping:
            self._check_finite(trainer, cast(LanguageModule, pl_module))

    def on_step_end(self, trainer: Trainer, module: LanguageModule, step: int) -> None:
        if not is_logged(step, self.log_every, module):
            return
        is_explosion = self.explosion.found_in(module.logged_losses)  # averaged over the ranks, so all ranks agree
        self.high_since = step - self.explosion.num_high + 1 if self.explosion.num_high else None
        if is_explosion:
            rise = f"has been more than {self.explosion.margin:g} above its average of {self.explosion.usual:.4f}"
            what = f"the loss of step {step} is {module.logged_losses[-1]:.4f} and {rise}"
            self._stop(trainer, module, "exploded", f"{what} for {self.explosion.num_high} steps")
        self.worst.clear()

    def _check_finite(self, trainer: Trainer, module: LanguageModule) -> None:
        if self.worst.loss is None:
            return
        loss = self.worst.loss.clone()
        if trainer.world_size > 1:
            dist.all_reduce(loss, op=dist.ReduceOp.MAX)
        if not math.isfinite(float(loss)):
            self._stop(trainer, module, "nan", "the loss of step {step} is not finite")

    def _stop(self, trainer: Trainer, module: LanguageModule, kind: str, what: str) -> None:
        """Save batches and state, then raise; every rank calls it in the same step."""
        self._is_stopping = True
        loss, step, rows = self.worst.fetch()
        found: list[Any] = [(loss, step, _documents(module.tokenizer, rows))]
        if world_size() > 1:
            own, found = found[0], [None] * world_size()
            dist.all_gather_object(found, own)
        path = Path(trainer.default_root_dir) / "checkpoints" / f"{kind}-step{trainer.global_step:06d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        batch_file = Path(trainer.default_root_dir) / BATCH_FILE
        if is_rank_zero():
            _write_batches(batch_file, found)
        # The earliest: after one rank's NaN, all ranks' losses are NaN from the next step on.
        loss, step, documents = min(found, key=lambda batch: (-batch[0], batch[1]))
        first = documents[0][1].strip() if documents else ""
        raise UserError(
            f"{what.format(step=step)}; training has stopped\n"
            f"  its batch is in {batch_file} and begins: {first[:SHOWN_CHARS]!r}\n"
            f"  the state at the stop is {_saved(trainer, path)}; --ckpt_path last resumes from the checkpoint before it; "
            "lower the learning rates or remove those documents"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"explosion": self.explosion.state_dict(), "high_since": self.high_since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.explosion.load_state_dict(state_dict["explosion"])
        self.high_since = state_dict["high_since"]


def _saved(trainer: Trainer, path: Path) -> str:
    writer = writer_of(trainer)
    writer.wait()
    error = writer.error
    return str(path) if error is None else f"lost ({path} cannot be written: {error.strerror})"


def _documents(tokenizer: Tokenizer, rows: list[list[int]]) -> list[tuple[str, str]]:
    """Return names and texts of the documents, or parts of documents, in sequences of token ids."""
    documents = []
    for number, row in enumerate(rows, start=1):
        starts = [at for at, token in enumerate(row) if token == tokenizer.bos_id and at > 0]
        for count, (start, end) in enumerate(zip([0, *starts], [*starts, len(row)], strict=True), start=1):
            documents.append((f"sequence {number}, document {count}", tokenizer.decode(row[start:end])))
    return documents


def _write_batches(path: Path, found: list[tuple[float, int, list[tuple[str, str]]]]) -> None:
    with atomic_write(path, "w") as file:
        for rank, (loss, step, documents) in enumerate(found):
            shown = f"{loss:.4f}" if math.isfinite(loss) else "not finite"
            file.write(f"# Rank {rank}: the micro-batch with the highest loss, in step {step}: {shown}\n")
            for name, text in documents:
                file.write(f"\n## Rank {rank}, {name}\n\n{text}\n")
            file.write("\n")

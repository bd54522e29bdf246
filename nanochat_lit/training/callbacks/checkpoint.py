"""Checkpoints of a run: every N steps or minutes, before each validation, at the end, and on a signal to stop."""

import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.checkpoint import BEST, LAST, step_files
from nanochat_lit.training.callbacks.loss_guard import LossGuard
from nanochat_lit.training.callbacks.step_callback import StepCallback
from nanochat_lit.training.checkpoint_files import AtomicCheckpointIO, check_no_earlier_run, give_name
from nanochat_lit.training.stop_request import StopRequest, silence_lightning

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class RunCheckpoint(StepCallback, Checkpoint):
    """Writes `stepNNNNNN.ckpt`, known as `last.ckpt` too, and as `best.ckpt` when the module's figure (val_bpb) is the best so far.

    Checkpoints are written between optimizer steps only, so there are no gradients in flight to save. One is written
    before each validation: what validation finds out decides only whether it is the best one. SIGTERM, SIGINT (Ctrl-C)
    and SIGUSR1 let the step finish, write one, and end the process with status 128 + the signal's number.

    On a GPU a thread writes while training continues (see `AtomicCheckpointIO`); the run waits for it before the next
    checkpoint and before it ends. A checkpoint that cannot be written (a full disk) is reported and training continues,
    with the older ones untouched; only the one at the end must succeed.

    Args:
        folder: Of the checkpoints.
        every_steps: Steps between checkpoints.
        every_minutes: Minutes between checkpoints, in addition; None disables them.
        keep_last: How many to keep, the newest.
        keep_best: Whether to keep the best one as well.
        overwrite: Replace the checkpoints of an earlier run in the folder, when this one does not continue it.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        every_minutes: float | None = None,
        keep_last: int = 2,
        keep_best: bool = True,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.overwrite = overwrite
        self.best: float | None = None
        self.stop_request = StopRequest()
        self._saved_at_s = 0.0
        self._path: Path | None = None  # of the last checkpoint, unless it failed
        self._group: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            silence_lightning(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 and not self.overwrite:
            check_no_earlier_run(self.folder)
        if trainer.global_step == 0 and trainer.is_global_zero:
            for path in [*step_files(self.folder).values(), self.folder / LAST, self.folder / BEST]:
                path.unlink(missing_ok=True)
        self._saved_at_s = time.monotonic()
        if trainer.world_size > 1:  # of CPU tensors: asking each other must not wait for the GPU
            self._group = torch.distributed.new_group(backend="gloo")
        self.stop_request.listen()

    def on_step_end(self, trainer: Trainer, module: "LanguageModule", step: int) -> None:
        is_late = self.every_minutes is not None and time.monotonic() - self._saved_at_s > 60 * self.every_minutes
        if _writer(trainer).error is not None:
            self._report(trainer)
        signum, is_late = self._agree(trainer, self.stop_request.signum, is_late)
        is_end = step >= module.plan.num_steps
        if signum or is_late or is_end or step % self.every_steps == 0 or module.validates_after(step):
            self.save(trainer, must_succeed=is_end or signum > 0)
        if signum and not is_end:
            raise SystemExit(128 + signum)

    def save(self, trainer: Trainer, *, must_succeed: bool = False) -> None:
        """Write a checkpoint of this step; every rank calls it.

        Raises:
            UserError: If it must succeed and did not.
        """
        self._report(trainer)
        self._path = self.folder / f"step{trainer.global_step:06d}.ckpt"
        trainer.save_checkpoint(self._path, weights_only=False)  # Lightning's word for leaving the optimizer out
        self._saved_at_s = time.monotonic()
        if trainer.is_global_zero:
            _writer(trainer).then(partial(give_name, self._path, LAST))
            _writer(trainer).then(partial(self._prune, trainer, trainer.global_step))
        if must_succeed or not _writer(trainer).is_writing():
            self._report(trainer, must_succeed=must_succeed)

    def _report(self, trainer: Trainer, *, must_succeed: bool = False) -> None:
        """Wait for the checkpoint in flight, and say if it could not be written."""
        writer = _writer(trainer)
        writer.wait()
        if (error := writer.error) is None:
            return
        path, writer.error, self._path = self._path, None, None
        if must_succeed:
            raise UserError(
                f"checkpoint {path} cannot be written: {error.strerror}; make room, then --ckpt_path last continues"
            )
        print(
            f"warning: checkpoint {path} could not be written ({error.strerror}); training continues, "
            "older checkpoints are untouched",
            file=sys.stderr,
        )

    def _prune(self, trainer: Trainer, step: int) -> None:
        """Remove what is not to be kept: old steps, later ones from which a resume has turned back, remains of a kill."""
        files = step_files(self.folder)
        kept = [at for at in files if at <= step][: self.keep_last]
        for guard in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(guard, LossGuard) and guard.high_since is not None:  # it may be exploding
                kept += [at for at in files if at < guard.high_since][:1]
        superseded = [path for at, path in files.items() if at not in kept]
        for path in [*superseded, *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast("LanguageModule", pl_module)
        value = trainer.callback_metrics.get(module.figure)
        if trainer.state.fn != "fit" or value is None or math.isnan(value):
            return
        sign = 1.0 if module.higher_is_better else -1.0
        if self.best is not None and sign * float(value) <= sign * self.best:
            return
        self.best = float(value)
        path = self.folder / f"step{trainer.global_step:06d}.ckpt"
        if self.keep_best and trainer.is_global_zero and path == self._path:
            _writer(trainer).then(partial(give_name, path, BEST))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.stop_request.ignore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop_request.ignore()  # Lightning leaves teardown out then
        self._report(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _agree(self, trainer: Trainer, signum: int, is_late: bool) -> tuple[int, bool]:
        """What any rank has noticed: a signal need not reach all of them, and their clocks differ."""
        if trainer.world_size == 1:
            return signum, is_late
        noticed = torch.tensor([signum, int(is_late)])
        torch.distributed.all_reduce(noticed, op=torch.distributed.ReduceOp.MAX, group=self._group)
        signum, late = noticed.tolist()
        return int(signum), bool(late)


def _writer(trainer: Trainer) -> AtomicCheckpointIO:
    return cast(AtomicCheckpointIO, trainer.strategy.checkpoint_io)

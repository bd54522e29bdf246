"""Checkpoints of a run: when they are written, and the state of each rank in them."""

import io
import math
import os
import random
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import numpy
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from nanochat_lit.common.distributed import rank, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.streams import discard_output
from nanochat_lit.engine.checkpoint import BEST, LAST, step_files
from nanochat_lit.training.callbacks import StepCallback
from nanochat_lit.training.callbacks.loss_guard import LossGuard
from nanochat_lit.training.checkpoint_files import check_no_earlier_run, give_name, writer_of
from nanochat_lit.training.lightning_internals import silence_signals
from nanochat_lit.training.module import LanguageModule

RANKS_KEY = "ranks"


class RankState(Callback):
    """Saves the state of all ranks in the checkpoint and restores each rank's own."""

    def __init__(self) -> None:
        self._own: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        module = cast(LanguageModule, pl_module)
        own = {
            "random": random_state(module.device),
            "position": module.datamodule.train_loader.position(),
            "module": module.rank_state_dict(),
        }
        states: list[Any] = [own]
        if world_size() > 1:  # a collective; Lightning calls this hook on every rank
            boxes: list[Any] = [None] * world_size()
            dist.all_gather_object(boxes, _packed(own))
            states = [torch.load(io.BytesIO(box), weights_only=True) for box in boxes]
        checkpoint[RANKS_KEY] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        states = checkpoint[RANKS_KEY]
        module = cast(LanguageModule, pl_module)
        module.datamodule.positions = [state["position"] for state in states]
        self._own = states[rank()] if len(states) == world_size() else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._own is not None:
            set_random_state(self._own["random"], pl_module.device)
            cast(LanguageModule, pl_module).load_rank_state_dict(self._own["module"])
            self._own = None


def _packed(state: dict[str, Any]) -> bytes:
    """Serialize with torch.save, since tensors of unsigned integers pickled by `all_gather_object` cannot be loaded."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the generator states of torch (CPU and the GPU in use), numpy and Python, loadable with weights_only."""
    name, keys, *rest = cast("tuple[Any, ...]", numpy.random.get_state(legacy=True))  # noqa: NPY002 - the global generator is what others may use
    return {
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device.type).get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), *rest),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state.get("device") is not None and device.type != "cpu":
        torch.get_device_module(device.type).set_rng_state(state["device"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))  # noqa: NPY002


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""SIGHUP is sent when the terminal closes; SIGUSR1 is commonly used by SLURM before the time limit. Not every system
has all of them."""


class StopRequest:
    """Listens for signals between `listen` and `ignore`; `signum` is that of the first, 0 before it arrives."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers; does nothing outside the main thread, where Python does not allow it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)
            is_nohup = name == "SIGHUP" and number and signal.getsignal(number) is signal.SIG_IGN
            if number and not is_nohup:
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def ignore(self) -> None:
        """Restore the previous handlers."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        text = f"\n{signal.Signals(signum).name}: finishing this step, then saving a checkpoint (send it again to stop immediately)\n"
        try:
            os.write(sys.stderr.fileno(), text.encode())  # print is not reentrant, and may be what was interrupted
        except (OSError, ValueError):  # the terminal is gone; a failed write must not end the run
            discard_output()


class RunCheckpoint(StepCallback, Checkpoint):
    """Writes `stepNNNNNN.ckpt` with the aliases `last.ckpt` and, for the best validation (val_bpb) so far, `best.ckpt`.

    Checkpoints are written only between optimizer steps, so no gradients need saving. One is written before each
    validation, which then decides only whether it becomes `best.ckpt`. On SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 the run
    finishes the step, writes a checkpoint, and exits with status 128 + signal number.

    On a GPU a background thread writes the file while training continues (see `AtomicCheckpointIO`). The run waits for
    it before the next checkpoint and at the end. If a checkpoint cannot be written (for example, because the disk is
    full), the error is reported, older checkpoints stay, and training continues. Only the final checkpoint must
    succeed.

    The options are those of `run_options`.
    """

    def __init__(self, folder: Path, options: SimpleNamespace) -> None:
        self.folder = folder
        self.options = options
        self.best: float | None = None
        self.stop_request = StopRequest()
        self._should_stop = False
        self._saved_at_s = 0.0
        self._path: Path | None = None  # last checkpoint, unless writing failed
        self._group: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            silence_signals(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 and not self.options.overwrite:
            check_no_earlier_run(self.folder)
        if trainer.global_step == 0 and trainer.is_global_zero:
            for path in [*step_files(self.folder).values(), self.folder / LAST, self.folder / BEST]:
                path.unlink(missing_ok=True)
        self._saved_at_s = time.monotonic()
        if trainer.world_size > 1:  # CPU tensors: this collective must not synchronize the GPU
            self._group = torch.distributed.new_group(backend="gloo")
        self.stop_request.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let a step be finished when the Trainer is to stop (max_time) between two of its micro-batches."""
        if trainer.should_stop and (batch_idx + 1) % trainer.accumulate_grad_batches:
            self._should_stop, trainer.should_stop = True, False
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step_end(self, trainer: Trainer, module: LanguageModule, step: int) -> None:
        minutes = self.options.checkpoint_minutes
        is_late = minutes is not None and time.monotonic() - self._saved_at_s > 60 * minutes
        if writer_of(trainer).error is not None:
            self._report(trainer)
        signum, is_late = self._agree(trainer, self.stop_request.signum, is_late)
        trainer.should_stop |= self._should_stop
        is_end = step >= module.plan.num_steps or trainer.should_stop
        if signum or is_late or is_end or step % self.options.checkpoint_every == 0 or module.validates_after(step):
            self.save(trainer, must_succeed=is_end or signum > 0)
        if signum and not is_end:
            raise SystemExit(128 + signum)

    def save(self, trainer: Trainer, *, must_succeed: bool = False) -> None:
        """Write a checkpoint of this step; call it on every rank. With `must_succeed` a failure raises UserError."""
        self._report(trainer)
        self._path = self.folder / f"step{trainer.global_step:06d}.ckpt"
        trainer.save_checkpoint(self._path, weights_only=False)  # True would omit the optimizer
        self._saved_at_s = time.monotonic()
        if trainer.is_global_zero:
            writer_of(trainer).then(partial(give_name, self._path, LAST))
            writer_of(trainer).then(partial(self._prune, trainer, trainer.global_step))
        if must_succeed or not writer_of(trainer).is_writing():
            self._report(trainer, must_succeed=must_succeed)

    def _report(self, trainer: Trainer, *, must_succeed: bool = False) -> None:
        """Wait for the checkpoint being written and report a failure."""
        writer = writer_of(trainer)
        writer.wait()
        if (error := writer.error) is None:
            return
        path, writer.error, self._path = self._path, None, None
        if must_succeed:
            raise UserError(
                f"checkpoint {path} cannot be written: {error.strerror}; free disk space and resume with --ckpt_path last"
            )
        print(
            f"warning: checkpoint {path} could not be written ({error.strerror}); training continues, "
            "older checkpoints are untouched",
            file=sys.stderr,
        )

    def _prune(self, trainer: Trainer, step: int) -> None:
        """Remove old checkpoints, later ones that a resume has superseded, and partial files of a killed process."""
        files = step_files(self.folder)
        kept = [at for at in files if at <= step][: self.options.keep_last]
        for guard in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(guard, LossGuard) and guard.high_since is not None:  # the loss may be exploding
                kept += [at for at in files if at < guard.high_since][:1]
        superseded = [path for at, path in files.items() if at not in kept]
        for path in [*superseded, *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(LanguageModule, pl_module)
        value = trainer.callback_metrics.get(module.figure)
        if trainer.state.fn != "fit" or value is None or math.isnan(value):
            return
        sign = 1.0 if module.higher_is_better else -1.0
        if self.best is not None and sign * float(value) <= sign * self.best:
            return
        self.best = float(value)
        path = self.folder / f"step{trainer.global_step:06d}.ckpt"
        if self.options.keep_best and trainer.is_global_zero and path == self._path:
            writer_of(trainer).then(partial(give_name, path, BEST))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.stop_request.ignore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop_request.ignore()  # Lightning skips teardown after an exception
        self._report(trainer)
        signum, where = self.stop_request.signum, type(exception).__module__
        if signum and where.startswith(("torch._inductor", "torch._dynamo")):  # Ctrl-C has ended the compiler, too
            print(f"stopped while step {trainer.global_step + 1} was compiled", file=sys.stderr)
            raise SystemExit(128 + signum) from None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _agree(self, trainer: Trainer, signum: int, is_late: bool) -> tuple[int, bool]:
        """Combine the ranks' signals and timers: a signal may reach only some ranks, and clocks differ."""
        if trainer.world_size == 1:
            return signum, is_late
        noticed = torch.tensor([signum, int(is_late)])
        torch.distributed.all_reduce(noticed, op=torch.distributed.ReduceOp.MAX, group=self._group)
        signum, late = noticed.tolist()
        return int(signum), bool(late)

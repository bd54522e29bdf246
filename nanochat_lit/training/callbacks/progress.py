"""Says how the run is going: step, loss, bits per byte, speed, share of the hardware's peak, time left."""

import sys
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.hardware import peak_flops_per_s

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule

SPEED_SMOOTHING = 0.8


class RunProgress(Callback):
    """Prints a progress line and logs metrics every few steps.

    In a terminal the line rewrites itself; piped, one line is printed per `log_every` steps.

    Args:
        log_every: Steps between log rows.
    """

    def __init__(self, log_every: int = 10) -> None:
        self.log_every = log_every
        self.loss: float | None = None
        self.val_bpb: float | None = None
        self.tokens_per_s: float | None = None
        self._is_warm = False
        self._peak_flops_per_s = float("nan")
        self._step_seen = self._logged_step = 0
        self._logged_at_s = self._started_at_s = self._paused_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast("LanguageModule", pl_module)
        self._peak_flops_per_s = peak_flops_per_s(module.device, module.model.compute_dtype)
        self._step_seen = self._logged_step = trainer.global_step
        self._started_at_s = self._logged_at_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module, step = cast("LanguageModule", pl_module), trainer.global_step
        if step == self._step_seen:
            return  # this micro-batch only accumulated
        self._step_seen = step
        if not (step == 1 or step % self.log_every == 0 or step == module.plan.num_steps):
            return
        self.loss = loss = module.pop_mean_loss()
        elapsed_s = time.perf_counter() - self._logged_at_s - self._paused_s
        speed = (step - self._logged_step) * module.plan.tokens_per_step / elapsed_s
        if self._is_warm:  # the first steps compile and warm up
            known = self.tokens_per_s
            self.tokens_per_s = speed if known is None else SPEED_SMOOTHING * known + (1 - SPEED_SMOOTHING) * speed
        self._is_warm = True
        self._logged_step, self._logged_at_s, self._paused_s = step, time.perf_counter(), 0.0
        self._log(trainer, module, step, loss, speed)
        self._print(trainer, module, step)

    def _log(self, trainer: Trainer, module: "LanguageModule", step: int, loss: float, speed: float) -> None:
        groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
        muon = next(group for group in groups.values() if group["kind"] == "muon")
        metrics = {
            "train_loss": loss,
            "tokens": step * module.plan.tokens_per_step,
            "seconds": time.perf_counter() - self._started_at_s,
            "tokens_per_s": speed,
            "mfu": self._mfu(module, trainer, speed),
            "lr_multiplier": muon["lr"] / muon["initial_lr"],
            "muon_momentum": muon["momentum"],
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)

    def _mfu(self, module: "LanguageModule", trainer: Trainer, tokens_per_s: float) -> float:
        return tokens_per_s * module.plan.flops_per_token / (self._peak_flops_per_s * trainer.world_size)

    def _print(self, trainer: Trainer, module: "LanguageModule", step: int) -> None:
        if not trainer.is_global_zero:
            return
        num_steps = module.plan.num_steps
        parts = [f"step {step}/{num_steps}", f"loss {self.loss:.4f}"]
        if self.val_bpb is not None:
            parts.append(f"val_bpb {self.val_bpb:.4f}")
        if self.tokens_per_s is not None:
            left_s = (num_steps - step) * module.plan.tokens_per_step / self.tokens_per_s
            mfu = self._mfu(module, trainer, self.tokens_per_s)
            parts.append(f"{self.tokens_per_s:,.0f} tok/s")
            if mfu == mfu:
                parts.append(f"mfu {mfu:.0%}")
            parts.append(f"ETA {_duration(left_s)}")
        _write_line(" | ".join(parts), is_last=step >= num_steps)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause_began_s = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused_s += time.perf_counter() - self._pause_began_s
        value = trainer.callback_metrics.get("val_bpb")
        if value is not None:
            self.val_bpb = float(value)
            if trainer.is_global_zero and trainer.state.fn == "fit":
                _write_line(f"step {trainer.global_step}: val_bpb {self.val_bpb:.4f}", is_last=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            peak = (
                f", peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if _on_cuda(pl_module) else ""
            )
            took = _duration(time.perf_counter() - self._started_at_s)
            _write_line(f"trained {trainer.global_step} steps in {took}{peak}", is_last=True)


def _on_cuda(pl_module: LightningModule) -> bool:
    return pl_module.device.type == "cuda"


def _write_line(text: str, *, is_last: bool) -> None:
    """One line on stderr; in a terminal the next one overwrites it unless it is the last."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K" + text + ("\n" if is_last else ""))
    else:
        sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"

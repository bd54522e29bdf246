"""Reports progress: step, loss, bits per byte, speed, MFU, memory, time left."""

import math
import sys
import time
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from nanochat_lit.common.hardware import peak_flops_per_s
from nanochat_lit.common.peak_memory import memory_text, peak_memory_bytes
from nanochat_lit.data.loader import ResumableLoader
from nanochat_lit.optim import global_grad_norm
from nanochat_lit.training.callbacks.step_callback import StepCallback
from nanochat_lit.training.progress_line import ProgressLine, bar, duration
from nanochat_lit.training.smoothed_loss import SmoothedLoss
from nanochat_lit.training.step_times import StepTimes, WindowTimes

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule

SPEED_SMOOTHING = 0.8

NOTABLE_WAIT = 0.05
"""Fraction of the time spent waiting for data above which the progress line shows it."""


class RunProgress(StepCallback):
    """Prints a progress line and logs a row of metrics every `log_every` steps.

    Losses stay on the device until a logged step, the only synchronization. Times are measured on this rank's host;
    losses and the gradient norm cover all ranks.

    Args:
        log_every: Steps between logged rows.
    """

    def __init__(self, log_every: int = 10) -> None:
        self.log_every = log_every
        self.smoothed_loss = SmoothedLoss()
        self.figure: float | None = None
        """Result of the last validation."""
        self.shown: dict[str, float] = {}
        """Additional metrics on the progress line, from the last logged row."""
        self.tokens_per_s: float | None = None
        self.times = StepTimes()
        self.line = ProgressLine()
        self._is_warm = False
        self._peak_flops_per_s = math.nan
        self._grad_norm: Tensor | None = None
        self._first_step = 0
        self._started_at_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        module = cast("LanguageModule", pl_module)
        self._peak_flops_per_s = peak_flops_per_s(module.device, module.model.compute_dtype)
        self._first_step = trainer.global_step
        self._started_at_s = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.times.begin(cast("LanguageModule", pl_module).datamodule.train_loader.asked_at_s)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if is_logged(trainer.global_step + 1, self.log_every, cast("LanguageModule", pl_module)):
            self._grad_norm = global_grad_norm(optimizer)

    def on_step_end(self, trainer: Trainer, module: "LanguageModule", step: int) -> None:
        is_row = is_logged(step, self.log_every, module)
        losses = module.pop_step_losses() if is_row else []  # synchronizes, so the window includes the device time
        self.times.end(time.perf_counter(), module.datamodule.train_loader.waited_s)
        for loss in losses:
            self.smoothed_loss.add(loss)
        if is_row:
            window = self.times.close_window()
            self._note_speed(window.num_steps * module.plan.tokens_per_step / window.seconds)
            self._log(trainer, module, losses, window)
            self._draw(trainer, module, window.data_wait)
        elif self.line.is_due:
            self._draw(trainer, module)

    def _note_speed(self, speed: float) -> None:
        if self._is_warm:  # the first steps compile and warm up
            known = self.tokens_per_s
            self.tokens_per_s = speed if known is None else SPEED_SMOOTHING * known + (1 - SPEED_SMOOTHING) * speed
        self._is_warm = True

    def _log(self, trainer: Trainer, module: "LanguageModule", losses: list[float], window: WindowTimes) -> None:
        groups = trainer.optimizers[0].param_groups
        tokens = trainer.global_step * module.plan.tokens_per_step
        speed = window.num_steps * module.plan.tokens_per_step / window.seconds
        figures = module.pop_step_figures()
        loader = module.datamodule.train_loader
        self.shown = {name: figures[name] for name in module.shown_figures if name in figures}
        metrics = {
            **figures,
            "train_loss": math.fsum(losses) / len(losses),
            "train_loss_ema": self.smoothed_loss.value,
            "grad_norm": math.nan if self._grad_norm is None else float(self._grad_norm),
            "tokens": tokens,
            "total_flops": tokens * module.plan.flops_per_token,
            "seconds": time.perf_counter() - self._started_at_s,
            "tokens_per_s": speed,
            "mfu": self._mfu(module, trainer, speed),
            "step_time_p50": window.p50_s,
            "step_time_p95": window.p95_s,
            "data_wait": window.data_wait,
            **({"data_lost": loader.lost} if isinstance(loader, ResumableLoader) else {}),
            "memory_gib": peak_memory_bytes(module.device) / 2**30,
            "lr_multiplier": groups[-1]["lr"] / groups[-1]["initial_lr"],
            **({"muon_momentum": groups[-1]["momentum"]} if groups[-1].get("kind") == "muon" else {}),
            **{f"lr/{group.get('name', index)}": group["lr"] for index, group in enumerate(groups)},
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step)

    def _mfu(self, module: "LanguageModule", trainer: Trainer, tokens_per_s: float) -> float:
        return tokens_per_s * module.plan.flops_per_token / (self._peak_flops_per_s * trainer.world_size)

    def _draw(self, trainer: Trainer, module: "LanguageModule", data_wait: float = 0.0) -> None:
        if not trainer.is_global_zero:
            return
        step, num_steps = trainer.global_step, module.plan.num_steps
        at = f"step {step}/{num_steps}"
        parts = [f"{at} {bar(step / num_steps)}" if sys.stderr.isatty() else at]
        if (loss := self.smoothed_loss.value) == loss:
            parts.append(f"loss {loss:.4f}")
        parts += [f"{name} {value:.3f}" for name, value in self.shown.items()]
        if self.figure is not None:
            parts.append(f"{module.figure} {self.figure:.4f}")
        if self.tokens_per_s is not None:
            parts += self._speed_parts(trainer, module, self.tokens_per_s)
        if data_wait > NOTABLE_WAIT:
            parts.append(f"data wait {data_wait:.0%}")
        if self.tokens_per_s is not None:
            left_s = (num_steps - step) * module.plan.tokens_per_step / self.tokens_per_s
            parts.append(f"ETA {duration(left_s)}")
        self.line.draw(" | ".join(parts))

    def _speed_parts(self, trainer: Trainer, module: "LanguageModule", tokens_per_s: float) -> list[str]:
        mfu = self._mfu(module, trainer, tokens_per_s)
        return [f"{tokens_per_s:,.0f} tok/s", *([f"mfu {mfu:.0%}"] if mfu == mfu else [])]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = cast("LanguageModule", pl_module).figure
        value = trainer.callback_metrics.get(name)
        if value is not None:
            self.figure = float(value)
            if trainer.is_global_zero and trainer.state.fn == "fit":
                self.line.keep(f"step {trainer.global_step}: {name} {self.figure:.4f}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, num_steps = cast("LanguageModule", pl_module), len(self.times)
        if not trainer.is_global_zero:
            return
        parts = [f"trained {num_steps} steps in {duration(time.perf_counter() - self._started_at_s)}"]
        if self._first_step:
            parts[0] += f" (from step {self._first_step} on)"
        if num_steps:
            tokens, median_s = num_steps * module.plan.tokens_per_step, self.times.median_s()
            parts += [f"{tokens:,} tokens", f"{tokens * module.plan.flops_per_token:.3g} FLOPs"]
            parts += self._speed_parts(trainer, module, module.plan.tokens_per_step / median_s)
            loader = module.datamodule.train_loader
            if isinstance(loader, ResumableLoader) and loader.lost:
                parts.append(f"packing lost {loader.lost:.1%} of the tokens read")
        parts.append(f"peak memory {memory_text(peak_memory_bytes(module.device))}")
        self.line.keep(" | ".join(parts))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.line.close()

    def state_dict(self) -> dict[str, Any]:
        return {"smoothed_loss": self.smoothed_loss.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.smoothed_loss.load_state_dict(state_dict["smoothed_loss"])


def is_logged(step: int, log_every: int, module: "LanguageModule") -> bool:
    """Return whether a step ends with a row of metrics; the same on every rank, as some metrics are collective."""
    return step == 1 or step % log_every == 0 or step == module.plan.num_steps

"""Reports progress: step, loss, bits per byte, speed, MFU, memory, time left."""

import math
import shutil
import sys
import time
from statistics import median
from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from nanochat_lit.common.hardware import memory_text, peak_flops_per_s, peak_memory_bytes
from nanochat_lit.data.loader import ResumableLoader
from nanochat_lit.optim import global_grad_norm
from nanochat_lit.training.callbacks import StepCallback
from nanochat_lit.training.module import LanguageModule

SPEED_SMOOTHING = 0.8
SMOOTHING = 0.95
"""Weight of the old average of the losses per step; corresponds to about 20 steps."""

NOTABLE_WAIT = 0.05
"""Fraction of the time spent waiting for data above which the progress line shows it."""

REDRAW_S = 0.5
"""Minimum interval between updates of a transient line, seconds."""

BAR_WIDTH = 20

RECENT_STEPS = 100
"""Number of recent steps that percentiles are computed over."""


class WindowTimes(NamedTuple):
    """Timing of a window of steps, seconds, excluding validation, checkpoints and logging between steps."""

    num_steps: int
    seconds: float
    data_wait: float  # fraction of the duration spent waiting for batches
    p50_s: float  # median and 95th percentile of recent steps
    p95_s: float


class SmoothedLoss:
    """Bias-corrected moving average of losses (Kingma and Ba 2015. https://arxiv.org/abs/1412.6980)."""

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        self.smoothing = smoothing
        self._sum = 0.0
        self._weight = 0.0

    def add(self, loss: float) -> None:
        """Add a loss."""
        self._sum += (1 - self.smoothing) * (loss - self._sum)
        self._weight += (1 - self.smoothing) * (1 - self._weight)

    @property
    def value(self) -> float:
        """Current average; NaN before the first loss."""
        return self._sum / self._weight if self._weight else math.nan

    def state_dict(self) -> dict[str, float]:
        """Return the state, for a checkpoint."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state that `state_dict` returned."""
        self._sum, self._weight = state["sum"], state["weight"]


class StepTimes:
    """Collects step durations, from the request for a step's first batch to the end of its optimizer step.

    Time between steps is excluded. The caller passes timestamps of one clock in seconds. On CUDA the host runs ahead of
    the device between logged rows: the total of a window is exact, its distribution over the steps is not.
    """

    def __init__(self) -> None:
        self._step_s: list[float] = []
        self._begin_s: float | None = None
        self._waited_s = 0.0
        self._window_from = self._recent_from = 0
        self._window_wait_s = 0.0

    def begin(self, at_s: float) -> None:
        """Start a step, unless one is open (later micro-batches of the same step)."""
        if self._begin_s is None:
            self._begin_s = at_s

    def end(self, at_s: float, waited_s: float) -> None:
        """End the open step; `waited_s` is the total time spent waiting for batches since the first step."""
        assert self._begin_s is not None, "end() without begin()"
        self._step_s.append(at_s - self._begin_s)
        self._window_wait_s += waited_s - self._waited_s
        self._waited_s = waited_s
        self._begin_s = None

    def close_window(self) -> WindowTimes:
        """Return the timing of the steps since the last call; requires at least one step.

        The first window is excluded from later percentiles, because its first step compiles.
        """
        window = self._step_s[self._window_from :]
        assert window, "the window has no steps"
        recent = self._step_s[max(self._recent_from, len(self._step_s) - RECENT_STEPS) :]
        seconds, percentiles = math.fsum(window), (percentile(recent, 0.5), percentile(recent, 0.95))
        times = WindowTimes(len(window), seconds, self._window_wait_s / seconds, *percentiles)
        if self._window_from == 0:
            self._recent_from = len(window)
        self._window_from, self._window_wait_s = len(self._step_s), 0.0
        return times

    def median_s(self) -> float:
        """Return the median duration of all steps except the first, which compiles; NaN without steps."""
        return median(self._step_s[1:] or self._step_s or [math.nan])

    def __len__(self) -> int:
        return len(self._step_s)


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that is not exceeded by the given fraction of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class ProgressLine:
    """Writes to stderr. `draw` replaces the previous transient line; `keep` prints a permanent one."""

    def __init__(self) -> None:
        self._drawn_at_s = -math.inf
        self._is_open = False

    @property
    def is_due(self) -> bool:
        """Return whether stderr is a terminal and the update interval has passed."""
        return sys.stderr.isatty() and time.monotonic() - self._drawn_at_s >= REDRAW_S

    def draw(self, text: str) -> None:
        """Show a transient line; permanent if stderr is not a terminal."""
        if not sys.stderr.isatty():
            self.keep(text)
            return
        width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be erased
        sys.stderr.write("\r\x1b[2K" + text[:width])
        sys.stderr.flush()
        self._is_open = True
        self._drawn_at_s = time.monotonic()

    def keep(self, text: str) -> None:
        """Print a permanent line."""
        sys.stderr.write(("\r\x1b[2K" if self._is_open else "") + text + "\n")
        sys.stderr.flush()
        self._is_open = False

    def close(self) -> None:
        """Finish the transient line with a newline."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False


def bar(share: float) -> str:
    """Return a progress bar for a fraction from 0 to 1."""
    full = round(BAR_WIDTH * min(1.0, max(0.0, share)))
    return "[" + "#" * full + "." * (BAR_WIDTH - full) + "]"


def duration(seconds: float) -> str:
    """Format a duration, such as 5m58s or 2h05m."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


class RunProgress(StepCallback):
    """Prints a progress line and logs a row of metrics every `log_every` steps.

    Losses stay on the device until a logged step, the only synchronization. Times are measured on this rank's host;
    losses and the gradient norm cover all ranks.
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
        self._started_at_cpu_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        module = cast(LanguageModule, pl_module)
        self._peak_flops_per_s = peak_flops_per_s(module.device, module.model.compute_dtype)
        self._first_step = trainer.global_step
        self._started_at_s, self._started_at_cpu_s = time.perf_counter(), time.process_time()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started_at_cpu_s -= time.process_time()  # the time of training excludes validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.times.begin(cast(LanguageModule, pl_module).datamodule.train_loader.asked_at_s)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if is_logged(trainer.global_step + 1, self.log_every, cast(LanguageModule, pl_module)):
            self._grad_norm = global_grad_norm(optimizer)

    def on_step_end(self, trainer: Trainer, module: LanguageModule, step: int) -> None:
        is_row = is_logged(step, self.log_every, module)
        losses = module.pop_step_losses() if is_row else []  # synchronizes, so the window includes the device time
        self.times.end(time.perf_counter(), module.datamodule.train_loader.waited_s)
        for loss in losses:
            self.smoothed_loss.add(loss)
        if is_row:
            window = self.times.close_window()
            speed = window.num_steps * module.plan.tokens_per_step / window.seconds
            if self._is_warm:  # the first steps compile and warm up
                known = self.tokens_per_s
                self.tokens_per_s = speed if known is None else SPEED_SMOOTHING * known + (1 - SPEED_SMOOTHING) * speed
            self._is_warm = True
            self._log(trainer, module, losses, window, speed)
            self._draw(trainer, module, window.data_wait)
        elif self.line.is_due:
            self._draw(trainer, module)

    def _log(
        self, trainer: Trainer, module: LanguageModule, losses: list[float], window: WindowTimes, speed: float
    ) -> None:
        groups = trainer.optimizers[0].param_groups
        tokens = trainer.global_step * module.plan.tokens_per_step
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
            "cpu_seconds": time.process_time() - self._started_at_cpu_s,
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
        module.log_figures(metrics)

    def _mfu(self, module: LanguageModule, trainer: Trainer, tokens_per_s: float) -> float:
        return tokens_per_s * module.plan.flops_per_token / (self._peak_flops_per_s * trainer.world_size)

    def _draw(self, trainer: Trainer, module: LanguageModule, data_wait: float = 0.0) -> None:
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
        speed = self.tokens_per_s
        parts += [] if speed is None else self._speed_parts(trainer, module, speed)
        parts += [f"data wait {data_wait:.0%}"] if data_wait > NOTABLE_WAIT else []
        if speed is not None:
            parts.append(f"ETA {duration((num_steps - step) * module.plan.tokens_per_step / speed)}")
        self.line.draw(" | ".join(parts))

    def _speed_parts(self, trainer: Trainer, module: LanguageModule, tokens_per_s: float) -> list[str]:
        mfu = self._mfu(module, trainer, tokens_per_s)
        return [f"{tokens_per_s:,.0f} tok/s", *([f"mfu {mfu:.0%}"] if mfu == mfu else [])]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started_at_cpu_s += time.process_time()
        name = cast(LanguageModule, pl_module).figure
        value = trainer.callback_metrics.get(name)
        if value is not None:
            self.figure = float(value)
            if trainer.is_global_zero and trainer.state.fn == "fit":
                self.line.keep(f"step {trainer.global_step}: {name} {self.figure:.4f}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, num_steps = cast(LanguageModule, pl_module), len(self.times)
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


def is_logged(step: int, log_every: int, module: LanguageModule) -> bool:
    """Return whether a step ends with a row of metrics; the same on every rank, as some metrics are collective."""
    return step == 1 or step % log_every == 0 or step == module.plan.num_steps

"""Schedules as pure functions of the step; nothing here has state, so a resumed run needs none."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How learning rates, Muon momentum and Muon weight decay move over a run of `num_steps` steps."""

    num_steps: int
    """Optimizer steps in the whole run."""
    warmup: int = 40
    """Steps over which learning rates rise linearly from nothing."""
    warmdown: float = 0.65
    """Share of the run, at its end, over which learning rates fall linearly."""
    final_lr_fraction: float = 0.05
    """Share of the learning rate that is left at the end."""
    momentum_start: float = 0.85
    """Muon momentum at the first step."""
    momentum_peak: float = 0.97
    """Muon momentum after its warm-up."""
    momentum_warmup: int = 400
    """Steps over which Muon momentum rises linearly."""
    momentum_final: float = 0.90
    """Muon momentum at the end; it falls linearly during the warmdown."""
    decay_weight_decay: bool = True
    """Whether Muon weight decay falls to zero along a cosine."""

    @property
    def warmdown_start(self) -> int:
        """Step at which learning rates begin to fall."""
        return self.num_steps - round(self.warmdown * self.num_steps)

    def lr_multiplier(self, step: int) -> float:
        """Factor on every learning rate: linear up, flat, linear down to `final_lr_fraction`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if step <= self.warmdown_start:
            return 1.0
        left = max(0.0, (self.num_steps - step) / (self.num_steps - self.warmdown_start))
        return left + (1.0 - left) * self.final_lr_fraction

    def muon_momentum(self, step: int) -> float:
        """Momentum: linear up over `momentum_warmup`, flat, linear down during the warmdown."""
        if step < self.momentum_warmup:
            done = step / self.momentum_warmup
            return self.momentum_start + done * (self.momentum_peak - self.momentum_start)
        if step >= self.warmdown_start and self.num_steps > self.warmdown_start:
            done = min(1.0, (step - self.warmdown_start) / (self.num_steps - self.warmdown_start))
            return self.momentum_peak + done * (self.momentum_final - self.momentum_peak)
        return self.momentum_peak

    def weight_decay_multiplier(self, step: int) -> float:
        """Factor on Muon weight decay."""
        if not self.decay_weight_decay:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.num_steps)))

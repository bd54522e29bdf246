"""Schedules as pure functions of the step, which need no state on resume."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Schedules of learning rates, Muon momentum and Muon weight decay over a run of `num_steps` steps."""

    num_steps: int
    """Number of optimizer steps in the run."""
    warmup: int = 40
    """Steps over which learning rates rise linearly from 0."""
    warmdown: float = 0.65
    """Fraction of the run, at its end, over which learning rates decay linearly."""
    final_lr_fraction: float = 0.05
    """Final learning rate as a fraction of its maximum."""
    momentum_start: float = 0.85
    """Muon momentum at the first step."""
    momentum_peak: float = 0.97
    """Muon momentum after its warmup."""
    momentum_warmup: int = 400
    """Steps over which Muon momentum rises linearly."""
    momentum_final: float = 0.90
    """Final Muon momentum; decays linearly during the warmdown."""
    decay_weight_decay: bool = True
    """Decay Muon weight decay to zero along a cosine."""

    @property
    def warmdown_start(self) -> int:
        """Step at which learning rates begin to decay."""
        return self.num_steps - round(self.warmdown * self.num_steps)

    def lr_multiplier(self, step: int) -> float:
        """Return the factor on every learning rate: linear warmup, constant, linear decay to `final_lr_fraction`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if step <= self.warmdown_start:
            return 1.0
        left = max(0.0, (self.num_steps - step) / (self.num_steps - self.warmdown_start))
        return left + (1.0 - left) * self.final_lr_fraction

    def muon_momentum(self, step: int) -> float:
        """Return the momentum: linear rise over `momentum_warmup`, constant, linear decay during the warmdown."""
        if step < self.momentum_warmup:
            done = step / self.momentum_warmup
            return self.momentum_start + done * (self.momentum_peak - self.momentum_start)
        if step >= self.warmdown_start and self.num_steps > self.warmdown_start:
            done = min(1.0, (step - self.warmdown_start) / (self.num_steps - self.warmdown_start))
            return self.momentum_peak + done * (self.momentum_final - self.momentum_peak)
        return self.momentum_peak

    def weight_decay_multiplier(self, step: int) -> float:
        """Return the factor on Muon weight decay."""
        if not self.decay_weight_decay:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.num_steps)))

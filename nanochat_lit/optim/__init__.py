"""Optimisation: Muon + AdamW, schedules, scaling laws. Plain PyTorch."""

from nanochat_lit.optim.muon_adamw import MuonAdamW
from nanochat_lit.optim.param_groups import param_groups
from nanochat_lit.optim.scaling import TrainingPlan, derive_plan, micro_batches
from nanochat_lit.optim.schedules import Schedule

__all__ = ["MuonAdamW", "Schedule", "TrainingPlan", "derive_plan", "micro_batches", "param_groups"]

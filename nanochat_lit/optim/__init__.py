"""Optimizers (Muon and AdamW), schedules and scaling laws in plain PyTorch."""

from nanochat_lit.optim.build import OptimizerCallable, build_optimizer, param_groups, train_in_a_loop
from nanochat_lit.optim.muon_adamw import MuonAdamW
from nanochat_lit.optim.scaling import TrainingPlan, derive_plan, micro_batches
from nanochat_lit.optim.schedules import Schedule
from nanochat_lit.optim.sharding import clip_grad_norm, global_grad_norm

__all__ = [
    "MuonAdamW",
    "OptimizerCallable",
    "Schedule",
    "TrainingPlan",
    "build_optimizer",
    "clip_grad_norm",
    "derive_plan",
    "global_grad_norm",
    "micro_batches",
    "param_groups",
    "train_in_a_loop",
]

"""Training stages as LightningModules: thin shells around the GPT, the optimizer and the data streams.

Recipes name the classes by these short paths.
"""

from nanochat_lit.training.callbacks.evaluators import ChatCoreEvaluator, CoreEvaluator
from nanochat_lit.training.distill import DistillModule, OnPolicyDistillModule
from nanochat_lit.training.dpo import DPOModule, PreferenceDataModule
from nanochat_lit.training.pretrain import PretrainModule, TextDataModule
from nanochat_lit.training.rl import RLModule
from nanochat_lit.training.rollout_data import RolloutDataModule
from nanochat_lit.training.sft import ChatDataModule, MixtureDataModule, SFTModule

__all__ = [
    "ChatCoreEvaluator",
    "ChatDataModule",
    "CoreEvaluator",
    "DPOModule",
    "DistillModule",
    "MixtureDataModule",
    "OnPolicyDistillModule",
    "PreferenceDataModule",
    "PretrainModule",
    "RLModule",
    "RolloutDataModule",
    "SFTModule",
    "TextDataModule",
]

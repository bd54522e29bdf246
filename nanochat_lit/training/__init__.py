"""Training stages as LightningModules: thin shells around the GPT, the optimizer and the data streams."""

from nanochat_lit.training.chat_data import ChatDataModule, MixtureDataModule
from nanochat_lit.training.datamodules import TextDataModule
from nanochat_lit.training.pretrain import PretrainModule
from nanochat_lit.training.rl import RLModule
from nanochat_lit.training.rollout_data import RolloutDataModule
from nanochat_lit.training.sft import SFTModule

__all__ = [
    "ChatDataModule",
    "MixtureDataModule",
    "PretrainModule",
    "RLModule",
    "RolloutDataModule",
    "SFTModule",
    "TextDataModule",
]

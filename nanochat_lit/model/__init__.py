"""The GPT core: plain PyTorch, no trainer."""

from nanochat_lit.model.config import GPTConfig
from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.kv_cache import KVCache
from nanochat_lit.model.loss import IGNORE_INDEX
from nanochat_lit.model.slot_cache import SlotCache

__all__ = ["GPT", "IGNORE_INDEX", "GPTConfig", "KVCache", "SlotCache"]

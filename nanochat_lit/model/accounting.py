"""Parameter, FLOP and cache-size counts of a model, computed from its config."""

from dataclasses import dataclass
from functools import lru_cache

from nanochat_lit.model.config import NATIVE_ARCHITECTURES, SMEAR_GATE_CHANNELS, GPTConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Number of parameters by group."""

    wte: int
    """Token embedding."""
    value_embeds: int
    """Value embeddings of all layers."""
    bigram: int
    """Hashed bigram embedding."""
    lm_head: int
    """Unembedding."""
    transformer_matrices: int
    """Matrices of the blocks, including gates."""
    scalars: int
    """Residual scalars, smear gate and backout; the weights of norms."""

    @property
    def total(self) -> int:
        """Total number of parameters."""
        return self.tables + self.lm_head + self.transformer_matrices + self.scalars

    @property
    def tables(self) -> int:
        """Embedding parameters, which take memory but no FLOPs."""
        return self.wte + self.value_embeds + self.bigram

    @property
    def scaling(self) -> int:
        """Parameters that scaling laws count: blocks and unembedding."""
        return self.transformer_matrices + self.lm_head


@lru_cache(maxsize=256)
def count_parameters(config: GPTConfig) -> ParameterCount:
    """Return the number of parameters by group, of a model without memory."""
    import torch

    from nanochat_lit.model.architecture import build_model

    with torch.device("meta"):
        model = build_model(config)
    groups = {"wte": 0, "value_embeds": 0, "bigram": 0, "lm_head": 0, "transformer_matrices": 0, "scalars": 0}
    for name, parameter in model.named_parameters():
        parts = name.removeprefix("transformer.").split(".")
        is_matrix = parts[0] == "h" and parameter.ndim > 1
        group = "transformer_matrices" if is_matrix else parts[0] if parts[0] in groups else "scalars"
        groups[group] += parameter.numel()
    return ParameterCount(**groups)


def flops_per_token(config: GPTConfig) -> int:
    """Return the training FLOPs per token (forward and backward) at full sequence length.

    6 per linear weight (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361) plus 12 * H * D per visible key and layer.
    """
    counts = count_parameters(config)
    smear = 0 if config.architecture in NATIVE_ARCHITECTURES else SMEAR_GATE_CHANNELS
    linear = counts.transformer_matrices + counts.lm_head + smear
    attention = sum(
        12 * config.n_head * config.head_dim * min(window, config.sequence_len) for window in config.windows
    )
    return 6 * linear + attention


def kv_cache_bytes(config: GPTConfig) -> int:
    """Return the key/value cache size of one full-length sequence in bytes, two per element."""
    return 4 * config.n_layer * config.sequence_len * config.n_kv_head * config.head_dim

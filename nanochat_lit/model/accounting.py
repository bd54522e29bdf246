"""Parameter, FLOP and cache-size counts of a model, computed from its config."""

from dataclasses import dataclass

from nanochat_lit.model.config import (
    NATIVE_ARCHITECTURES,
    REFERENCE_ARCHITECTURE,
    SMEAR_GATE_CHANNELS,
    VALUE_GATE_CHANNELS,
    GPTConfig,
)


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


def count_parameters(config: GPTConfig) -> ParameterCount:
    """Return the number of parameters by group; architecture variants are instantiated to count them."""
    if config.architecture != REFERENCE_ARCHITECTURE:
        return _counted(config)
    width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
    num_tables = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    block = 2 * width * width + 2 * width * kv_width + 8 * width * width
    gate = min(VALUE_GATE_CHANNELS, width) * config.n_kv_head
    return ParameterCount(
        wte=config.padded_vocab_size * width,
        value_embeds=num_tables * config.padded_vocab_size * kv_width,
        bigram=config.num_bigram_rows * width,
        lm_head=config.padded_vocab_size * width,
        transformer_matrices=config.n_layer * block + num_tables * gate,
        scalars=2 * config.n_layer + SMEAR_GATE_CHANNELS + 2,
    )


def _counted(config: GPTConfig) -> ParameterCount:
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

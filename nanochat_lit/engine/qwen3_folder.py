"""A model of the architecture qwen3 by the names and numbers of transformers' Qwen3ForCausalLM, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.config import QWEN3
from nanochat_lit.model.qwen3 import NORM_EPS, mlp_width
from nanochat_lit.model.rotary import ROTARY_BASE

_OUTSIDE = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.c_gate": "mlp.gate_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def hf_names(config: GPTConfig) -> dict[str, str]:
    """Names in transformers by our names; a tied matrix is the embedding there and the unembedding here."""
    layers = {
        f"transformer.h.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(config.n_layer)
        for ours, theirs in _IN_LAYER.items()
    }
    names = _OUTSIDE | layers
    if config.tie_embeddings:
        names["lm_head.weight"] = names.pop("transformer.wte.weight")
    return names


def to_hf(config: GPTConfig, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by transformers' names."""
    names = hf_names(config)
    return {names[name]: tensor for name, tensor in tensors.items()}


def from_hf(config: GPTConfig, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by our names; unknown names are kept, and refused when the model is assembled.

    transformers saves a tied unembedding under one name or under both.
    """
    names = {theirs: ours for ours, theirs in hf_names(config).items()}
    if config.tie_embeddings and "model.embed_tokens.weight" in tensors:
        tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def hf_config(config: GPTConfig) -> dict[str, Any]:
    """The model's fields of config.json."""
    return {
        "model_type": QWEN3,
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "max_position_embeddings": config.sequence_len,
        "tie_word_embeddings": config.tie_embeddings,
        **_fixed_fields(config),
    }


def _fixed_fields(config: GPTConfig) -> dict[str, Any]:
    """Fields that follow from the others or that this package has no choice of; older programs read rope_theta."""
    return {
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "intermediate_size": mlp_width(config),
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "rope_theta": ROTARY_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
    }


def gpt_config(values: Mapping[str, Any], folder: Path) -> GPTConfig:
    """Our dimensions out of a config for transformers.

    Args:
        values: Of config.json.
        folder: It is in, for the message.

    Raises:
        UserError: If a field is missing, or has a value that this package cannot represent.
    """
    try:
        config = GPTConfig(
            sequence_len=values["max_position_embeddings"], vocab_size=values["vocab_size"],
            n_layer=values["num_hidden_layers"], n_head=values["num_attention_heads"],
            n_kv_head=values["num_key_value_heads"], n_embd=values["hidden_size"], window_pattern="L",
            architecture=QWEN3, tie_embeddings=values["tie_word_embeddings"],
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} lacks {error}, which a config of {QWEN3} has") from None
    fixed = _fixed_fields(config)
    if "rope_theta" not in values:  # transformers 5 writes rope_parameters alone
        del fixed["rope_theta"]
    for name, expected in fixed.items():
        if values.get(name, expected) != expected:
            raise UserError(
                f"{folder} has {name} {values[name]!r}; only {expected!r} can be represented at these dimensions"
            )
    return config

"""Models of which transformers has a class of its own, by its names of weights and fields of config.json, and back.

| architecture | class |
|---|---|
| qwen3 | Qwen3ForCausalLM |
| nanochat2025 | NanoChatForCausalLM, as nanochat's models of 2025 are published |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.config import NANOCHAT_2025, QWEN3
from nanochat_lit.model.earlier_nanochat import EARLIER_ROTARY_BASE
from nanochat_lit.model.layers import SOFTCAP
from nanochat_lit.model.qwen3 import NORM_EPS, mlp_width
from nanochat_lit.model.rotary import ROTARY_BASE

MODEL_TYPES = {QWEN3: "qwen3", NANOCHAT_2025: "nanochat"}
"""transformers' name of each architecture."""

ARCHITECTURES = {model_type: architecture for architecture, model_type in MODEL_TYPES.items()}
CLASSES = {QWEN3: "Qwen3ForCausalLM", NANOCHAT_2025: "NanoChatForCausalLM"}
"""transformers' class of each architecture."""

_ATTENTION = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
}
_LAYER = {
    QWEN3: _ATTENTION
    | {
        "attn_norm": "input_layernorm",
        "attn.q_norm": "self_attn.q_norm",
        "attn.k_norm": "self_attn.k_norm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.c_gate": "mlp.gate_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    NANOCHAT_2025: _ATTENTION | {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"},
}


def hf_names(config: GPTConfig) -> dict[str, str]:
    """Names in transformers by our names; a tied matrix is the embedding there and the unembedding here."""
    embedding = "lm_head" if config.tie_embeddings else "transformer.wte"
    names = {} if config.tie_embeddings else {"lm_head": "lm_head"}
    names[embedding] = "model.embed_tokens"
    if config.architecture == QWEN3:
        names["norm"] = "model.norm"
    for layer in range(config.n_layer):
        for ours, theirs in _LAYER[config.architecture].items():
            names[f"transformer.h.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}


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
        "model_type": MODEL_TYPES[config.architecture],
        "architectures": [CLASSES[config.architecture]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "tie_word_embeddings": config.tie_embeddings,
        **_fixed_fields(config),
    }


def _fixed_fields(config: GPTConfig) -> dict[str, Any]:
    """Fields that follow from the others or that this package has no choice of; older programs read rope_theta."""
    is_qwen3 = config.architecture == QWEN3
    base = ROTARY_BASE if is_qwen3 else EARLIER_ROTARY_BASE
    own = (
        {"head_dim": config.head_dim, "use_sliding_window": False} if is_qwen3 else {"final_logit_softcapping": SOFTCAP}
    )
    return {
        "intermediate_size": mlp_width(config) if is_qwen3 else 4 * config.n_embd,
        "hidden_act": "silu" if is_qwen3 else "relu2",
        "rms_norm_eps": NORM_EPS,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        **own,
    }


def gpt_config(values: Mapping[str, Any], folder: Path) -> GPTConfig:
    """Return our dimensions from the fields of a config.json of a model type in `ARCHITECTURES`.

    Raises:
        UserError: If a field is missing, or has a value that this package cannot represent.
    """
    try:
        config = GPTConfig(
            sequence_len=values["max_position_embeddings"], vocab_size=values["vocab_size"],
            n_layer=values["num_hidden_layers"], n_head=values["num_attention_heads"],
            n_kv_head=values["num_key_value_heads"], n_embd=values["hidden_size"], window_pattern="L",
            architecture=ARCHITECTURES[values["model_type"]], tie_embeddings=values.get("tie_word_embeddings", False),
        )  # fmt: skip
    except KeyError as error:
        message = f"{folder / 'config.json'} lacks {error}, which a config of {values['model_type']} has"
        raise UserError(message) from None
    for name, expected in _fixed_fields(config).items():
        found = values.get(name, expected)  # transformers 5 writes rope_parameters without rope_theta
        if isinstance(expected, dict) and isinstance(found, dict):
            found = {key: found.get(key, value) for key, value in expected.items()}
        if found != expected:
            raise UserError(f"{folder} has {name} {found!r}; only {expected!r} can be represented at these dimensions")
    return config

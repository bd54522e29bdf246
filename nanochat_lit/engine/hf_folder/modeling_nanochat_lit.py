"""A nanochat-lit model for transformers: the forward pass of nanochat_lit/model/gpt.py with transformers' attention and caches.

Shapes: B rows, T tokens, C channels, H heads, Hkv key/value heads, D head dim.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple

from .configuration_nanochat_lit import NanochatLitConfig

SMEAR_CHANNELS = 24
VALUE_GATE_CHANNELS = 12
PAIR_FACTORS = (36313, 27191)
"""Of a token and of the one before it, in the hash of the two."""
POSITION_BITS = 20
ID_DIGITS = 3
DIGIT_BITS = 8
"""A token id is remembered as digits below 256, which bfloat16 holds exactly."""
CACHE_FIELD = {True: "cache", False: "past_key_values"}["cache" in BaseModelOutputWithPast.__dataclass_fields__]
"""What outputs call the cache: it was renamed in transformers 5.24."""


def norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension, without a weight."""
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the head dimension by minus theta. x (B, T, H, D), cos and sin (B, T, 1, D/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def eager_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by matrix products. (B, H, T, D) -> (B, T, H, D), and the weights."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.float().softmax(dim=-1).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class NanochatLitCachedAttention(nn.Module):
    """What transformers' attention functions want to know of a layer, and the call of the one that was chosen."""

    def __init__(self, config: NanochatLitConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Store keys and values (B, Hkv, T, D), and attend with queries (B, H, T, D) to all of them; (B, T, H, D)."""
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attention: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(self.config._attn_implementation), eager_attention_forward
        )
        return attention(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )


class NanochatLitPreviousToken(NanochatLitCachedAttention):
    """The id of the token before each, out of a key/value cache of its own.

    Smear mixes a token's embedding with the one before, which a decoding step does not see. Kept as keys and values, it is
    there under every cache and attention: beams, cropping, paged memory. The key is the position in binary (as -1 and 1), the
    query the position before, so sharp that the softmax is exact; the value is the token id in three digits.
    """

    def __init__(self, config: NanochatLitConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.num_bits = min(POSITION_BITS, config.head_dim)
        if config.head_dim < ID_DIGITS or 2**self.num_bits <= config.sliding_window + 1:
            raise ValueError(f"head_dim {config.head_dim} is too small to tell {config.sliding_window} positions apart")
        sharpness = 1.0
        while sharpness * self.scaling < 32.0:  # neighbours score at least 64 lower
            sharpness *= 2.0
        self.sharpness = sharpness

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        dtype: torch.dtype,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T) ids; what stands before position 0 is arbitrary."""
        shifts = torch.arange(ID_DIGITS, device=input_ids.device) * DIGIT_BITS
        digits = (input_ids.unsqueeze(-1) >> shifts) & (2**DIGIT_BITS - 1)
        q = self._heads(self._bits(position_ids - 1) * self.sharpness, self.config.num_attention_heads, dtype)
        k = self._heads(self._bits(position_ids), self.config.num_key_value_heads, dtype)
        v = self._heads(digits, self.config.num_key_value_heads, dtype)
        mixed, _ = self.attend(q, k, v, attention_mask, past_key_values, **kwargs)
        mixed = mixed.reshape(*input_ids.shape, -1, self.head_dim)
        found = mixed[..., 0, :ID_DIGITS].float().round().long()  # (B, T, digits) of the first head
        return (found << shifts).sum(dim=-1).clamp(0, self.config.padded_vocab_size - 1)

    def _bits(self, positions: Tensor) -> Tensor:
        shifts = torch.arange(self.num_bits, device=positions.device)
        return ((positions.unsqueeze(-1) >> shifts) & 1) * 2 - 1

    def _heads(self, x: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        """(B, T, n) -> (B, num_heads, T, D), the same in every head, filled with zeros."""
        padded = F.pad(x.to(dtype), (0, self.head_dim - x.shape[-1]))
        return padded.unsqueeze(1).expand(-1, num_heads, -1, -1).contiguous()


class NanochatLitAttention(NanochatLitCachedAttention):
    """Causal attention with rotary positions, QK-norm and, on every second layer, a gated value embedding."""

    def __init__(self, config: NanochatLitConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.c_q = nn.Linear(width, width, bias=False)
        self.c_k = nn.Linear(width, kv_width, bias=False)
        self.c_v = nn.Linear(width, kv_width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        if config.has_value_embedding(layer_idx):
            self.ve_gate = nn.Linear(min(VALUE_GATE_CHANNELS, width), config.num_key_value_heads, bias=False)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and the attention weights if the implementation gives them."""
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = self.c_q(x).view(shape), self.c_k(x).view(shape), self.c_v(x).view(shape)
        if value_embedding is not None:
            gate = self.config.value_gate_scale * torch.sigmoid(self.ve_gate(x[..., : self.ve_gate.in_features]))
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v)
        q = norm(rotate(q, *rotary)) * self.config.qk_scale
        k = norm(rotate(k, *rotary)) * self.config.qk_scale
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mixed, weights = self.attend(q, k, v, attention_mask, past_key_values, **kwargs)
        return self.c_proj(mixed.reshape(*x.shape[:-1], -1)), weights


class NanochatLitMLP(nn.Module):
    """Two linear layers around relu squared."""

    def __init__(self, config: NanochatLitConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Each token by itself."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class NanochatLitBlock(GradientCheckpointingLayer):
    """Attention and MLP, each on a normed input, added to the residual stream."""

    def __init__(self, config: NanochatLitConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn = NanochatLitAttention(config, layer_idx)
        self.mlp = NanochatLitMLP(config)

    def forward(self, x: Tensor, value_embedding: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and the attention weights."""
        mixed, weights = self.attn(norm(x), value_embedding, **kwargs)
        x = x + mixed
        return x + self.mlp(norm(x)), weights


class NanochatLitPreTrainedModel(PreTrainedModel):
    """What transformers should know of these models."""

    config_class = NanochatLitConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NanochatLitBlock"]  # noqa: RUF012 (transformers' names and forms, here and below)
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["resid_lambdas", "x0_lambdas"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations; transformers would take that of the first parameter, a scalar kept in float32."""
        embedding: Any = self.get_input_embeddings()
        return embedding.weight.dtype

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Give every table of tokens this many rows, value embeddings included, as transformers does with the first and last."""
        embedding: Any = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        tables: Any = self.base_model.value_embeds
        for layer, table in tables.items():
            tables[layer] = self._get_resized_embeddings(table, embedding.num_embeddings, None, mean_resizing)
        self.config.padded_vocab_size = embedding.num_embeddings
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Small random weights for models that are not loaded; those to be trained come from nanochat-lit."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, NanochatLitModel):
            nn.init.ones_(module.resid_lambdas)
            for scalars in (module.x0_lambdas, module.smear_lambda, module.backout_lambda):
                nn.init.zeros_(scalars)


class NanochatLitModel(NanochatLitPreTrainedModel):
    """Token ids to final normed states."""

    def __init__(self, config: NanochatLitConfig) -> None:
        super().__init__(config)
        rows, kv_width = config.padded_vocab_size, config.num_key_value_heads * config.head_dim
        blocks = nn.ModuleList([NanochatLitBlock(config, layer) for layer in range(config.n_layer)])
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(rows, config.hidden_size), "h": blocks})
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.zeros(1))
        layers = [layer for layer in range(config.n_layer) if config.has_value_embedding(layer)]
        self.value_embeds = nn.ModuleDict({str(layer): nn.Embedding(rows, kv_width) for layer in layers})
        self.previous_token = NanochatLitPreviousToken(config, config.n_layer)
        if config.bigram_factor:
            self.bigram = nn.Embedding(config.bigram_rows, config.hidden_size)
            # smear mixes in the embedding of the token before, which is one of a pair too
            self.token_before_previous = NanochatLitPreviousToken(config, config.n_layer + 1)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def blocks(self) -> list[Any]:
        """The transformer layers, first to last."""
        return list(self.transformer["h"])  # type: ignore[arg-type]

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.transformer["wte"] = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Final states, (B, T, C), of (B, T) token ids; the arguments are transformers' own.

        Raises:
            ValueError: If embeddings are given in place of token ids, which the value embeddings need.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError(
                "give input_ids: this model looks up value embeddings by token, inputs_embeds are not enough"
            )
        past_key_values = past_key_values if cache is None else cache  # its name from transformers 5.24 on
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        x = self.transformer["wte"](input_ids)
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, past_key_values)
        position_ids = position_ids.expand(input_ids.shape)
        masks = self._masks(x, attention_mask, past_key_values, position_ids)
        context: dict[str, Any] = {"past_key_values": past_key_values, "position_ids": position_ids, **kwargs}
        x = self._first_states(input_ids, x.dtype, attention_mask=masks["sliding_attention"], **context)
        first, middle = x, x
        rotary = self._rotary(position_ids, x.dtype)
        states, attentions = [x], []
        for layer, block in enumerate(self.blocks):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * first
            table = self.value_embeds[str(layer)] if self.config.has_value_embedding(layer) else None
            value_embedding = None if table is None else table(input_ids)
            mask = masks[self.config.layer_types[layer]]
            x, weights = block(x, value_embedding, rotary=rotary, attention_mask=mask, **context)
            states.append(x)
            attentions.append(weights)
            if layer == self.config.n_layer // 2:
                middle = x
        x = norm(x - self.backout_lambda.to(x.dtype) * middle)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            **{CACHE_FIELD: past_key_values},
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def embed(self, token_ids: Tensor, before: Tensor | None) -> Tensor:
        """Normed embeddings before the smear, (B, T, C), of tokens and, with a bigram embedding, of those before them."""
        x = self.transformer["wte"](token_ids)
        if before is not None:
            pairs = (token_ids * PAIR_FACTORS[0]) ^ (before * PAIR_FACTORS[1])
            x = x + self.bigram(pairs % self.bigram.num_embeddings)
        return norm(x)

    def _first_states(self, input_ids: Tensor, dtype: torch.dtype, position_ids: Tensor, **context: Any) -> Tensor:
        """Embeddings, each with a gated share of the un-smeared one before it; the very first has none."""
        before = self.previous_token(input_ids, position_ids, dtype, **context)
        pair = pair_before = None
        if self.config.bigram_factor:
            pair = before = before.masked_fill(position_ids == 0, 0)
            pair_before = self.token_before_previous(before, position_ids, dtype, **context)
        x, previous = self.embed(input_ids, pair), self.embed(before, pair_before)
        opening = (x[..., :SMEAR_CHANNELS] * self.smear_gate.weight[0].to(x.dtype)).sum(dim=-1, keepdim=True)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(opening)
        return torch.where(position_ids.unsqueeze(-1) > 0, x + gate * previous, x)

    def _positions(self, input_ids: Tensor, attention_mask: Any, past_key_values: Cache | None) -> Tensor:
        """Positions, 0 at the first token that is not padding."""
        length = input_ids.shape[1]
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        return torch.arange(length, device=input_ids.device).unsqueeze(0) + start

    def _masks(
        self, x: Tensor, attention_mask: Any, past_key_values: Cache | None, position_ids: Tensor
    ) -> dict[str, Tensor | None]:
        if isinstance(attention_mask, dict):  # `generate` has made them for a static cache
            return attention_mask
        # by position: the fourth has had other names in other versions
        about = (self.config, x, attention_mask, past_key_values)
        return {
            "full_attention": create_causal_mask(*about, position_ids=position_ids),
            "sliding_attention": create_sliding_window_causal_mask(*about, position_ids=position_ids),
        }

    def _rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (B, T, 1, D/2)."""
        head_dim = self.config.head_dim
        channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device)
        frequencies = 1.0 / (self.config.rope_theta ** (channels / head_dim))
        angles = (position_ids.unsqueeze(-1).float() * frequencies).unsqueeze(-2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class NanochatLitForCausalLM(NanochatLitPreTrainedModel, GenerationMixin):
    """Token ids to softcapped logits."""

    def __init__(self, config: NanochatLitConfig) -> None:
        super().__init__(config)
        self.model = NanochatLitModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The unembedding."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the unembedding."""
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) in float32, and the loss if labels are given (-100 does not count); else as in the base model."""
        num_items = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(input_ids=input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        cap = self.config.final_logit_softcapping
        logits = self.lm_head(outputs.last_hidden_state[:, kept])[..., : self.config.vocab_size]
        logits = cap * torch.tanh(logits.float() / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_FIELD: outputs.get(CACHE_FIELD)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

"""A nanochat-lit model for transformers: its forward pass (transformer.py) with transformers' attention and caches.

Shapes: B sequences, T tokens, C channels, H heads, Hkv key/value heads, D head dim.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import can_return_tuple

from nanochat_lit.engine.hf_folder.configuration_nanochat_lit import NanochatLitConfig
from nanochat_lit.model.config import SMEAR_GATE_CHANNELS
from nanochat_lit.model.layers import Linear
from nanochat_lit.model.rotary import rotary_at
from nanochat_lit.model.transformer import Transformer as Architecture

POSITION_BITS = 20
ID_DIGITS = 3
DIGIT_BITS = 8
"""A token id is stored as digits below 256, which bfloat16 holds exactly."""
CACHE_FIELD = {True: "cache", False: "past_key_values"}["cache" in BaseModelOutputWithPast.__dataclass_fields__]
"""Name of the cache in outputs, which changed in transformers 5.24."""


class LayerAttention(nn.Module):
    """Attributes that transformers' attention functions read from a layer, and the call of the one that was chosen.

    vLLM finds the modules with attention by that call in their `forward`.
    """

    def __init__(self, config: NanochatLitConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: "Context") -> tuple[Tensor, Tensor | None]:
        """Store keys and values (B, T, Hkv, D), and attend with queries (B, T, H, D) to all of them; (B, T, H, D)."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if context.past_key_values is not None:
            k, v = context.past_key_values.update(k, v, self.layer_idx)
        attention: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(self.config._attn_implementation), eager_attention_forward
        )
        mask = context.masks[self.config.layer_types[self.layer_idx]]
        window = self.sliding_window
        return attention(
            self, q, k, v, mask, dropout=0.0, scaling=self.scaling, sliding_window=window, **context.options
        )


class PreviousToken(nn.Module):
    """The id of the token before each, out of a key/value cache of its own.

    Smear mixes a token's embedding with the one before, which a decoding step does not see. Kept as keys and values, it is
    there under every cache and attention: beams, cropping, paged memory. The key is the position in binary (as -1 and 1), the
    query the position before, so sharp that the softmax is exact; the value is the token id in three digits.
    """

    def __init__(self, config: NanochatLitConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer, self.head_dim = config, layer_idx, config.head_dim
        self.num_bits = min(POSITION_BITS, config.head_dim)
        if config.head_dim < ID_DIGITS or 2**self.num_bits <= config.sliding_window + 1:
            raise ValueError(f"head_dim {config.head_dim} is too small to tell {config.sliding_window} positions apart")
        self.sharpness = 1.0
        while self.sharpness * config.head_dim**-0.5 < 32.0:  # neighbours score at least 64 lower
            self.sharpness *= 2.0

    def forward(self, input_ids: Tensor, context: "Context") -> Tensor:
        """(B, T) ids; what stands before position 0 is arbitrary."""
        positions = context.position_ids
        shifts = torch.arange(ID_DIGITS, device=input_ids.device) * DIGIT_BITS
        digits = (input_ids.unsqueeze(-1) >> shifts) & (2**DIGIT_BITS - 1)
        q = self._heads(self._bits(positions - 1) * self.sharpness, self.config.num_attention_heads, context.dtype)
        k = self._heads(self._bits(positions), self.config.num_key_value_heads, context.dtype)
        v = self._heads(digits, self.config.num_key_value_heads, context.dtype)
        mixed = context.model.attentions[self.layer](q, k, v, context)[0].reshape(*input_ids.shape, -1, self.head_dim)
        found = mixed[..., 0, :ID_DIGITS].float().round().long()  # (B, T, digits) of the first head
        return (found << shifts).sum(dim=-1).clamp(0, self.config.padded_vocab_size - 1)

    def _bits(self, positions: Tensor) -> Tensor:
        shifts = torch.arange(self.num_bits, device=positions.device)
        return ((positions.unsqueeze(-1) >> shifts) & 1) * 2 - 1

    def _heads(self, x: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        """(B, T, n) -> (B, T, num_heads, D), the same in every head, filled with zeros."""
        padded = F.pad(x.to(dtype), (0, self.head_dim - x.shape[-1]))
        return padded.unsqueeze(2).expand(-1, -1, num_heads, -1)


class Context:
    """One forward pass: the tokens that attention can see, in place of our own caches, and what the pass leaves."""

    previous_embedding: Tensor | None = None
    previous_token: Tensor | None = None

    def __init__(
        self,
        model: "NanochatLitModel",
        position_ids: Tensor,
        masks: dict[str, Tensor | None],
        past_key_values: Cache | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.position_ids, self.masks = model, position_ids, masks
        self.past_key_values, self.dtype = past_key_values, model.dtype
        self.options = {"position_ids": position_ids, **options}
        self.states: list[Tensor] = []
        self.attentions: list[Tensor | None] = []

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:  # noqa: ARG002
        """(B, T, H, D) and twice (B, T, Hkv, D) -> (B, T, H, D)."""
        mixed, weights = self.model.attentions[layer](queries, keys, values, self)
        self.attentions.append(weights)
        return mixed


class Network(Architecture):
    """The forward pass; what a sequence begins with is found by attention, as a cache of transformers has no field for it."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]  # set by transformers

    def first_states(self, inputs: Tensor, context: Any) -> Tensor:
        """Normed embeddings, each with a gated share of the un-smeared one before it; the very first has none."""
        is_first = context.position_ids == 0
        before = context.model.previous_token(inputs, context)
        ids = pair_before = None
        if self.bigram is not None:  # the embedding before is one of a bigram too
            ids = before = before.masked_fill(is_first, 0)
            pair_before = context.model.token_before_previous(before, context)
        x, previous = self.embed(inputs, ids), self.embed(before, pair_before)
        x = torch.where(is_first.unsqueeze(-1), x, x + self.smear_openings(x) * previous)
        context.states.append(x)
        return x

    def smear_openings(self, x: Tensor) -> Tensor:
        """As the original, by a call of the layer: serving engines replace it by one whose weight cannot be read."""
        return self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """The states after a layer, which the pass leaves."""
        is_checkpointing = self.gradient_checkpointing and self.training
        x = self._gradient_checkpointing_func(block, *inputs) if is_checkpointing else block(*inputs)
        inputs[-1].states.append(x)
        return x


class NanochatLitPreTrainedModel(PreTrainedModel):
    """Settings of these models for transformers."""

    config_class = NanochatLitConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = [Architecture.block_class.__name__]  # noqa: RUF012 (transformers' names and forms, here and below)
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["resid_lambdas", "x0_lambdas"]  # noqa: RUF012
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations; transformers would take that of the first parameter, a scalar kept in float32."""
        embedding: Any = self.get_input_embeddings()
        return embedding.weight.dtype

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize every embedding of tokens, value embeddings included, as transformers does with the first and last."""
        embedding: Any = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        tables: Any = cast("Any", self.base_model.network).value_embeds
        for layer, table in tables.items():
            tables[layer] = self._get_resized_embeddings(table, embedding.num_embeddings, None, mean_resizing)
        self.config.padded_vocab_size = embedding.num_embeddings
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Small random weights for models that are not loaded; those to be trained come from nanochat-lit."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, Network):
            nn.init.ones_(module.resid_lambdas)
            for scalars in (module.x0_lambdas, module.smear_lambda, module.backout_lambda):
                nn.init.zeros_(scalars)


class NanochatLitModel(NanochatLitPreTrainedModel):
    """Token ids to final normed states."""

    def __init__(self, config: NanochatLitConfig) -> None:
        super().__init__(config)
        self.network = Network(config.shape(), torch.get_default_dtype())
        del self.network.lm_head  # NanochatLitForCausalLM has it
        self.attentions: Any = nn.ModuleList([LayerAttention(config, i) for i in range(config.num_hidden_layers)])
        self.previous_token = PreviousToken(config, config.n_layer)
        if config.bigram_factor:
            self.token_before_previous = PreviousToken(config, config.n_layer + 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.network.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.network.transformer["wte"] = value

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
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, past_key_values)
        position_ids = position_ids.expand(input_ids.shape)
        masks = self._masks(input_ids, attention_mask, past_key_values, position_ids)
        context = Context(self, position_ids, masks, past_key_values, kwargs)
        cos, sin = rotary_at(position_ids, self.config.head_dim, Architecture.rotary_base)
        self.network.compute_dtype = self.dtype
        x = self.network.states(input_ids, cos.to(self.dtype), sin.to(self.dtype), context)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            **{CACHE_FIELD: past_key_values},
            hidden_states=(*context.states[:-1], x) if output_hidden_states else None,
            attentions=cast("Any", tuple(context.attentions)) if output_attentions else None,
        )

    def _positions(self, input_ids: Tensor, attention_mask: Any, past_key_values: Cache | None) -> Tensor:
        """Positions that begin with 0 at the first token that is not padding."""
        length = input_ids.shape[1]
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        return torch.arange(length, device=input_ids.device).unsqueeze(0) + start

    def _masks(
        self, input_ids: Tensor, attention_mask: Any, past_key_values: Cache | None, position_ids: Tensor
    ) -> dict[str, Tensor | None]:
        if isinstance(attention_mask, dict):  # `generate` has made them for a static cache
            return attention_mask
        # by position: the fourth has had other names in other versions. Of the states only shape and dtype are read
        states = torch.empty((*input_ids.shape, 1), dtype=self.dtype, device=input_ids.device)
        about = (self.config, states, attention_mask, past_key_values)
        return {
            "full_attention": create_causal_mask(*about, position_ids=position_ids),
            "sliding_attention": create_sliding_window_causal_mask(*about, position_ids=position_ids),
        }


class NanochatLitForCausalLM(NanochatLitPreTrainedModel, GenerationMixin):
    """Token ids to softcapped logits."""

    def __init__(self, config: NanochatLitConfig) -> None:
        super().__init__(config)
        self.model = NanochatLitModel(config)
        self.lm_head: nn.Module = Linear(config.hidden_size, config.padded_vocab_size)
        self.post_init()

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
        raw = self.lm_head(outputs.last_hidden_state[:, kept])[..., : self.config.vocab_size]
        logits = self.model.network.cap_logits(raw)
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

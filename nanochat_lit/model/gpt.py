"""The GPT of nanochat in plain PyTorch.

Rotary positions, QK-norm, RMSNorm without weights, relu squared, value embeddings on every second layer, per-layer
residual scalars, smear (each token takes a little of the one before), backout (the middle of the network is partly
subtracted from the end), sliding windows, softcapped logits. Parameter names are those of nanochat's checkpoints. Added to
its architecture, and off unless the config says otherwise: hashed bigram embeddings (model/bigram.py).

Precision: no autocast. Linear weights are kept in float32 and cast to the activations' dtype where they are used;
embedding tables are kept in the compute dtype (in float32 when that is float16, whose range is too small for them).

Shapes: B rows, T tokens, C channels (n_embd), H heads, Hkv key/value heads, D head dim, V vocabulary.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lit.common.errors import UserError
from nanochat_lit.model.attention import (
    AttentionBackend,
    causal_attention,
    choose_attention,
    cuda_facts,
    steady_kernels,
    window_block_mask,
)
from nanochat_lit.model.bigram import bigram_rows
from nanochat_lit.model.checkpointing import Checkpointing, checkpointed
from nanochat_lit.model.config import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS, GPTConfig
from nanochat_lit.model.float8 import MULTIPLE, Float8ChunkMatmuls, to_float8
from nanochat_lit.model.kv_cache import KVCache
from nanochat_lit.model.layers import Linear, init_normal, init_uniform, make_table, norm
from nanochat_lit.model.loss import (
    ChunkMatmuls,
    reduce_losses,
    softcap,
    softcapped_cross_entropy,
    softmax_and_slope,
    token_logprobs,
    token_losses,
    total_and_token_losses,
)
from nanochat_lit.model.rotary import rotary_tables, rotate
from nanochat_lit.model.slot_cache import SlotCache

Cache: TypeAlias = KVCache | SlotCache

QK_SCALE = 1.2
"""Queries and keys are sharpened by this after QK-norm."""

VALUE_GATE_SCALE = 3.0
"""The value-embedding gate reaches up to this."""

REDUCTIONS = ("mean", "sum", "none")


class Attention(nn.Module):
    """Multi-head (or grouped-query) causal attention with rotary positions, QK-norm and an optional value embedding."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.window = config.windows[layer]
        self.head_dim = config.head_dim
        self.window_masks: dict[int, Any] = {}  # by number of tokens; see GPT.prepare_windows
        self.c_q = Linear(config.n_embd, config.n_head * config.head_dim)
        self.c_k = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_v = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        if config.has_value_embedding(layer):
            self.ve_gate = Linear(min(VALUE_GATE_CHANNELS, config.n_embd), config.n_kv_head)

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor, kv_cache: Cache | None
    ) -> Tensor:
        """Attend; with a cache, x holds the positions after those in it. (B, T, C) -> (B, T, C)."""
        rows, length, _ = x.shape
        q = self.c_q(x).view(rows, length, -1, self.head_dim)
        k = self.c_k(x).view(rows, length, -1, self.head_dim)
        v = self.c_v(x).view(rows, length, -1, self.head_dim)
        if value_embedding is not None:
            gate = VALUE_GATE_SCALE * torch.sigmoid(self.ve_gate(x[..., : self.ve_gate.in_features]))  # (B, T, Hkv)
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v)
        q = norm(rotate(q, cos, sin)) * QK_SCALE
        k = norm(rotate(k, cos, sin)) * QK_SCALE
        if kv_cache is None:
            mixed = causal_attention(q, k, v, self.window, self.window_masks.get(length))
        else:
            mixed = kv_cache.attend(self.layer, q, k, v, self.window)
        return self.c_proj(mixed.reshape(rows, length, -1))


class MLP(nn.Module):
    """Two linear layers around relu squared (So et al. 2021, Primer. https://arxiv.org/abs/2109.08668)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def init_weights(self, bound: float, generator: torch.Generator | None) -> None:
        """Set the matrices; the last is zero, so that the block starts as the identity.

        Args:
            bound: sqrt(3 / C): a uniform matrix of this bound keeps the variance.
            generator: Source of randomness.
        """
        init_uniform(self.c_fc.weight, -0.4 * bound, 0.4 * bound, generator)
        self.c_proj.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Each token by itself. (B, T, C) -> (B, T, C)."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """One transformer layer: attention and MLP, each on a normed input, added to the residual stream."""

    attention_class: type[Attention] = Attention
    """What a variant may replace."""
    mlp_class: type[nn.Module] = MLP
    """Takes the config; has `init_weights(bound, generator)` and maps (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = self.attention_class(config, layer)
        self.mlp = self.mlp_class(config)

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor, kv_cache: Cache | None
    ) -> Tensor:
        """Both parts, each added to the residual stream. (B, T, C) -> (B, T, C)."""
        x = x + self.attn(norm(x), value_embedding, cos, sin, kv_cache)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """A GPT of the given shape. Call `init_weights` (or load weights) before use.

    Args:
        config: Its dimensions.
        compute_dtype: Dtype of activations and matrix products.
        activation_checkpointing: True keeps only what enters each block and computes the rest again for the backward pass:
            a third more arithmetic, much less memory. "selective" computes all but matmuls and attention again.
    """

    block_class: type[Block] = Block
    """The layers; a variant of the architecture names its own (see the page on extending)."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: GPTConfig,
        compute_dtype: torch.dtype = torch.float32,
        *,
        activation_checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = activation_checkpointing
        vocabulary, kv_width = config.padded_vocab_size, config.n_kv_head * config.head_dim
        self.transformer = nn.ModuleDict(
            {
                "wte": make_table(vocabulary, config.n_embd),
                "h": nn.ModuleList([self.block_class(config, layer) for layer in range(config.n_layer)]),
            }
        )
        self.lm_head = Linear(config.n_embd, vocabulary)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        self.smear_gate = Linear(SMEAR_GATE_CHANNELS, 1)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.value_embeds = nn.ModuleDict(
            {
                str(layer): make_table(vocabulary, kv_width)
                for layer in range(config.n_layer)
                if config.has_value_embedding(layer)
            }
        )
        self.bigram = make_table(config.num_bigram_rows, config.n_embd) if config.bigram_factor else None
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.compute_dtype = compute_dtype
        self.set_compute_dtype(compute_dtype)
        self._features: Callable[..., Tensor] = self.features
        self._loss_kernel = softmax_and_slope
        self._scaling = to_float8
        self.decode_kernel: Callable[[Tensor, SlotCache | KVCache], Tensor] | None = None
        """Computes the logits of a decode step, or after a chunk of one prompt, in one call; see model/packed.py."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.resid_lambdas.device

    def set_compute_dtype(self, dtype: torch.dtype, *, cast_weights: bool = False) -> "GPT":
        """Choose the dtype of activations; moves the embedding tables to their storage dtype and returns self.

        Args:
            dtype: bfloat16, float16 or float32.
            cast_weights: Also store the matrices in it (inference: half the memory traffic, no casts).
        """
        self.compute_dtype = dtype
        table_dtype = torch.float32 if dtype == torch.float16 and not cast_weights else dtype
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                table.to(table_dtype)
            elif isinstance(table, Linear) and cast_weights:
                table.to(dtype)
        self._set_rotary_tables()
        return self

    def _set_rotary_tables(self) -> None:
        if self.device.type == "meta":
            return  # `init_weights` or `load_model` will; arithmetic on meta tensors imports the whole compiler
        cos, sin = rotary_tables(self.config.sequence_len, self.config.head_dim, device=self.device)
        self.cos, self.sin = cos.to(self.compute_dtype), sin.to(self.compute_dtype)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter and table; a model made on the meta device is whole after `to_empty` and this.

        Args:
            generator: Source of randomness; None uses torch's global one.
        """
        config = self.config
        bound = (3.0 / config.n_embd) ** 0.5
        init_normal(cast("nn.Embedding", self.transformer["wte"]).weight, 0.8, generator)
        init_normal(self.lm_head.weight, 0.001, generator)
        for table in cast("Iterable[nn.Embedding]", self.value_embeds.values()):
            init_uniform(table.weight, -bound, bound, generator)
        if self.bigram is not None:
            self.bigram.weight.zero_()
        for layer, block in enumerate(self.blocks):
            for matrix in (block.attn.c_q, block.attn.c_k, block.attn.c_v):
                init_uniform(matrix.weight, -bound, bound, generator)
            block.mlp.init_weights(bound, generator)
            block.attn.c_proj.weight.zero_()
            if config.has_value_embedding(layer):
                init_uniform(block.attn.ve_gate.weight, 0.0, 0.02, generator)
        progress = torch.linspace(0.0, 1.0, config.n_layer) if config.n_layer > 1 else torch.zeros(1)
        self.resid_lambdas.copy_(1.15 - 0.10 * progress)
        self.x0_lambdas.copy_(0.20 - 0.15 * progress)
        init_uniform(self.smear_gate.weight, 0.0, 0.02, generator)
        self.smear_lambda.zero_()
        self.backout_lambda.fill_(0.2)
        self._set_rotary_tables()

    @property
    def blocks(self) -> list[Any]:
        """The transformer layers, first to last."""
        return list(self.transformer["h"])  # type: ignore[arg-type]

    def prepare_windows(self, length: int) -> None:
        """Let training at one length use FlexAttention for its windows, where this device has it.

        Args:
            length: Tokens in a row of a training batch. Call it when the model is on its device.
        """
        for attention in [block.attn for block in self.blocks]:
            is_windowed = attention.window < length - 1
            if is_windowed and self.attention_backends()[1] == "flex":
                attention.window_masks[length] = window_block_mask(length, attention.window, self.device)

    def compile_for_training(self, length: int | None = None) -> None:
        """Compile the two hot parts: everything up to the last norm, and one chunk of the loss. Keys stay unchanged.

        Args:
            length: Tokens in a row of a training batch; None is the context. Call it when the model is on its device.
        """
        self.prepare_windows(length or self.config.sequence_len)
        self._features = torch.compile(self.features, dynamic=False)
        self._loss_kernel = torch.compile(softmax_and_slope, dynamic=False)
        self._scaling = torch.compile(to_float8, dynamic=False)

    def attention_backends(self, *, is_compiling: bool = False) -> tuple[AttentionBackend, AttentionBackend]:
        """The forms that training takes on this device: for full attention, for windows."""
        kind, length, facts = self.device.type, self.config.sequence_len, cuda_facts(self.device)
        options = {"dtype": self.compute_dtype, "num_tokens": length, "is_compiling": is_compiling}
        choose = partial(choose_attention, kind, **options, **facts)
        return choose(is_windowed=False), choose(is_windowed=True)

    def features(self, inputs: Tensor, kv_cache: Cache | None = None) -> Tensor:
        """Final normed states, (B, T, C) in the compute dtype, of (B, T) token ids."""
        with steady_kernels(inputs.device):
            hidden = self._states(inputs, kv_cache)
        if kv_cache is not None:
            kv_cache.advance(inputs.shape[1])
        return hidden

    def _states(self, inputs: Tensor, kv_cache: Cache | None) -> Tensor:
        length = inputs.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        if kv_cache is not None:
            cos, sin = kv_cache.rotary(self.cos, self.sin, length)
        x = self.transformer["wte"](inputs).to(self.compute_dtype)
        if self.bigram is not None:
            x = x + self.bigram(bigram_rows(inputs, self.config.num_bigram_rows, kv_cache)).to(x.dtype)
        x = self._smear(norm(x), kv_cache)
        first, middle = x, x
        is_checkpointing = self.activation_checkpointing and kv_cache is None and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * first
            table = self.value_embeds[str(layer)] if self.config.has_value_embedding(layer) else None
            value_embedding = None if table is None else table(inputs).to(x.dtype)
            if is_checkpointing:
                x = checkpointed(block, self.activation_checkpointing, x, value_embedding, cos, sin, None)
            else:
                x = block(x, value_embedding, cos, sin, kv_cache)
            if layer == self.config.n_layer // 2:
                middle = x
        return norm(x - self.backout_lambda.to(x.dtype) * middle)

    def _smear(self, x: Tensor, kv_cache: Cache | None) -> Tensor:
        """Add to each token a gated share of the un-smeared token before it; the very first has none."""
        # a sum, not a product with one column: libraries compute that differently for different numbers of rows
        opening = (x[..., :SMEAR_GATE_CHANNELS] * self.smear_gate.weight[0].to(x.dtype)).sum(dim=-1, keepdim=True)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(opening)  # (B, T, 1)
        previous = None if kv_cache is None else kv_cache.previous_embedding
        if previous is None:
            smeared = torch.cat((x[:, :1], x[:, 1:] + gate[:, 1:] * x[:, :-1]), dim=1)
        else:
            smeared = x + gate * torch.cat((previous, x[:, :-1]), dim=1)
        if kv_cache is not None:
            kv_cache.previous_embedding = x[:, -1:]
        return smeared

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        reduction: str = "mean",
        kv_cache: Cache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits, or the loss when targets are given.

        Args:
            inputs: (B, T) token ids.
            targets: (B, T) ids of the next tokens; IGNORE_INDEX (-1) does not count.
            reduction: Of the loss: "mean" over the kept targets, "sum", or "none" for (B, T).
            kv_cache: Holds the tokens before these and takes these in.
            last_only: Logits of the last position alone, (B, 1, V).

        Returns:
            Float32 logits (B, T, V), softcapped, or the float32 loss in nats.

        Raises:
            UserError: If the tokens do not fit the context.
        """
        end = inputs.shape[1] + (0 if kv_cache is None else kv_cache.position)
        if end > self.config.sequence_len:
            raise UserError(
                f"{end} tokens do not fit the model's context of {self.config.sequence_len}; shorten the input"
            )
        if reduction not in REDUCTIONS:
            raise UserError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
        is_step = isinstance(kv_cache, SlotCache) or (last_only and kv_cache is not None and len(inputs) == 1)
        if targets is None and self.decode_kernel is not None and kv_cache is not None and is_step:
            logits = self.decode_kernel(inputs, kv_cache)
            kv_cache.advance(inputs.shape[1])
            return logits.unsqueeze(1)
        if targets is None:
            hidden = self.features(inputs, kv_cache)
            return self.cap_logits(self.unembed(hidden[:, -1:] if last_only else hidden))
        hidden = self._training_features(inputs) if kv_cache is None else self.features(inputs, kv_cache)
        if self._has_own_cap:
            return reduce_losses(-self._logprobs(hidden, targets)[0], targets, reduction)
        if not isinstance(self.lm_head, Linear):  # packed for inference: it has no weight that could be taken apart
            losses = token_losses(hidden, targets, self.unembed, self.config.vocab_size)
            return reduce_losses(losses, targets, reduction)
        return softcapped_cross_entropy(
            hidden, self._unembedding(), targets, reduction, self._loss_kernel, self._make_matmuls
        )

    def unembed(self, hidden: Tensor) -> Tensor:
        """Raw logits (..., V) of final states (..., C)."""
        return self.lm_head(hidden)[..., : self.config.vocab_size]

    def cap_logits(self, logits: Tensor) -> Tensor:
        """Float32 logits of raw ones, (..., V) -> (..., V). A variant that overrides it does without the loss kernels."""
        return softcap(logits)

    @property
    def _has_own_cap(self) -> bool:
        return type(self).cap_logits is not GPT.cap_logits

    def _logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies as of `logprobs`, from final states."""

        def capped(rows: Tensor) -> Tensor:
            return self.cap_logits(self.unembed(rows))

        return token_logprobs(hidden, capped, targets, self.config.vocab_size, temperature)

    def loss_and_token_losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss to train with, and what it is made of.

        Args:
            inputs: (B, T) token ids.
            targets: (B, T) ids of the next tokens; IGNORE_INDEX (-1) does not count.

        Returns:
            Float32 mean over the kept targets in nats, and (B, T) losses without gradient, 0 for ignored targets.
        """
        hidden = self._training_features(inputs)
        if self._has_own_cap:
            losses = -self._logprobs(hidden, targets)[0]
            return reduce_losses(losses, targets, "mean"), losses.detach()
        total, losses = total_and_token_losses(
            hidden, self._unembedding(), targets, self._loss_kernel, self._make_matmuls
        )
        return reduce_losses(total, targets, "mean"), losses

    def logprobs(self, inputs: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """How likely each next token is, for objectives that weigh tokens differently.

        Args:
            inputs: (B, T) token ids.
            targets: (B, T) ids of the next tokens; IGNORE_INDEX (-1) gives 0.
            temperature: That the tokens are thought to be sampled at.

        Returns:
            (B, T) float32 log-probabilities in nats, and (B, T) entropies of the distributions, without gradient.
        """
        return self._logprobs(self._training_features(inputs), targets, temperature)

    def _training_features(self, inputs: Tensor) -> Tensor:
        """Compiled for training alone: evaluation comes in many shapes, and each would be compiled anew."""
        return self._features(inputs) if torch.is_grad_enabled() else self.features(inputs)

    def _make_matmuls(self, weight: Tensor, hidden: Tensor, chunk: int) -> ChunkMatmuls | Float8ChunkMatmuls:
        if self.lm_head.trains_in_float8 and chunk % MULTIPLE == len(hidden) % MULTIPLE == 0:
            return Float8ChunkMatmuls(weight, hidden.dtype, self._scaling)
        return ChunkMatmuls(weight, hidden, chunk)

    def _unembedding(self) -> Tensor:
        """The rows of lm_head that are real tokens, (V, C)."""
        weight = self.lm_head.weight
        return weight if self.config.vocab_size == weight.shape[0] else weight[: self.config.vocab_size]

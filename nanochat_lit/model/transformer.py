"""The forward pass of nanochat's GPT, from token ids to final states, and how its weights start. The only copy.

Rotary positions, QK-norm, RMSNorm without weights, relu squared, value embeddings on every second layer, per-layer
residual scalars, smear (each token takes a little of the one before), backout (the middle of the network is partly
subtracted from the end), sliding windows, softcapped logits. Parameter names are those of nanochat's checkpoints. Added to
its architecture, and off unless the config says otherwise: hashed bigram embeddings (an idea of the modded-nanogpt speedrun).

`GPT` (model/gpt.py) adds losses, caches and kernels. Folders for Hugging Face carry a copy of this file and of those that it
imports, with transformers' attention and caches in place of ours: import nothing here but torch and such files.

Shapes: B sequences, T tokens, C channels (n_embd), H heads, Hkv key/value heads, D head dim, V vocabulary.
"""

from collections.abc import Iterable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lit.model.config import SMEAR_GATE_CHANNELS, VALUE_GATE_CHANNELS, GPTConfig
from nanochat_lit.model.layers import Linear, init_normal, init_uniform, make_table, norm, softcap
from nanochat_lit.model.rotary import ROTARY_BASE, rotate

QK_SCALE = 1.2
"""Queries and keys are sharpened by this after QK-norm."""

VALUE_GATE_SCALE = 3.0
"""The value-embedding gate reaches up to this."""

TOKEN_FACTOR, PREVIOUS_FACTOR = 36313, 27191
"""Multipliers of the bigram hash; odd, so that each spreads the ids over the embeddings."""


class Context(Protocol):
    """The tokens that a forward pass can see: those of its own sequences, or of a cache too."""

    @property
    def previous_embedding(self) -> Tensor | None:
        """(B, 1, C) normed, un-smeared embedding of the token before these; None at the start."""

    @previous_embedding.setter
    def previous_embedding(self, embedding: Tensor) -> None: ...

    @property
    def previous_token(self) -> Tensor | None:
        """(B, 1) its id, int64."""

    @previous_token.setter
    def previous_token(self, token_ids: Tensor) -> None: ...

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        """Attention of the new tokens, (B, T, H, D), to the new keys and values, (B, T, Hkv, D), and those before."""
        ...


def bigram_ids(token_ids: Tensor, previous: Tensor, num_bigrams: int) -> Tensor:
    """Index of the hashed bigram embedding of each token and the one before it; bigrams may share one.

    Both are (B, T) ids; the first token of a sequence has 0 before it.
    """
    token_ids = token_ids.long()  # products of 32 bits would overflow
    return ((token_ids * TOKEN_FACTOR) ^ (previous * PREVIOUS_FACTOR)) % num_bigrams


def previous_tokens(token_ids: Tensor, context: Context) -> Tensor:
    """The int64 id before each of (B, T) ids; the context keeps the last one for the next call."""
    token_ids = token_ids.long()
    before = context.previous_token
    if before is None:
        before = torch.zeros_like(token_ids[:, :1])
    previous = torch.cat((before, token_ids[:, :-1]), dim=1)  # first: a cache may write in place
    context.previous_token = token_ids[:, -1:].clone()  # the caller may write into its tensor
    return previous


class Attention(nn.Module):
    """Multi-head (or grouped-query) causal attention with rotary positions, QK-norm and an optional value embedding."""

    gate_channels = VALUE_GATE_CHANNELS
    """Leading channels of the input that the value-embedding gate reads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.window = config.windows[layer]
        self.head_dim = config.head_dim
        self.c_q = Linear(config.n_embd, config.n_head * config.head_dim)
        self.c_k = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_v = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        if config.has_value_embedding(layer):
            self.ve_gate = Linear(min(self.gate_channels, config.n_embd), config.n_kv_head)

    def forward(self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        """Attend to what the context shows. (B, T, C) -> (B, T, C)."""
        rows, length, _ = x.shape
        q, k = self.queries_and_keys(x, cos, sin)
        v = self.c_v(x).view(rows, length, -1, self.head_dim)
        if value_embedding is not None:
            v = v + self.value_gate(x).unsqueeze(-1) * value_embedding.view_as(v)
        mixed = context.attend(self.layer, q, k, v, self.window)
        return self.c_proj(mixed.reshape(rows, length, -1))

    def value_gate(self, x: Tensor) -> Tensor:
        """How much of the value embedding is added, (B, T, C) -> (B, T, Hkv)."""
        return VALUE_GATE_SCALE * torch.sigmoid(self.ve_gate(x[..., : self.gate_channels]))

    def queries_and_keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Normed and rotated, (B, T, C) -> (B, T, H, D) and (B, T, Hkv, D)."""
        q = self.c_q(x).view(*x.shape[:2], -1, self.head_dim)
        k = self.c_k(x).view(*x.shape[:2], -1, self.head_dim)
        return norm(rotate(q, cos, sin)) * QK_SCALE, norm(rotate(k, cos, sin)) * QK_SCALE


class MLP(nn.Module):
    """Two linear layers around relu squared (So et al. 2021, Primer. https://arxiv.org/abs/2109.08668)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def init_weights(self, bound: float, generator: torch.Generator | None) -> None:
        """Set the matrices, uniform in +-bound, sqrt(3 / C), to keep the variance.

        The last is zero, so that the block starts as the identity.
        """
        init_uniform(self.c_fc.weight, -0.4 * bound, 0.4 * bound, generator)
        self.c_proj.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Each token by itself. (B, T, C) -> (B, T, C)."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """One transformer layer: attention and MLP, each on a normed input, added to the residual stream."""

    attention_class: type[Attention] = Attention
    """Parts that a variant may replace."""
    mlp_class: type[nn.Module] = MLP
    """Takes the config; has `init_weights(bound, generator)` and maps (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = self.attention_class(config, layer)
        self.mlp = self.mlp_class(config)

    def forward(self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        """Both parts, each added to the residual stream. (B, T, C) -> (B, T, C)."""
        x = x + self.attn(norm(x), value_embedding, cos, sin, context)
        return x + self.mlp(norm(x))


class Transformer(nn.Module):
    """Token ids to final states. Call `init_weights` (or load weights) before use."""

    block_class: type[Block] = Block
    """The layers; a variant of the architecture names its own (see the page on extending)."""

    is_capped = True
    """Whether logits are softcapped."""

    rotary_base = ROTARY_BASE

    @classmethod
    def constants(cls) -> dict[str, float]:
        """Constants of the formulas, which a Hugging Face folder states and its code checks."""
        return {"rope_theta": cls.rotary_base, "qk_scale": QK_SCALE, "value_gate_scale": VALUE_GATE_SCALE}

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        vocabulary = config.padded_vocab_size
        self.transformer = nn.ModuleDict(
            {
                "wte": make_table(vocabulary, config.n_embd),
                "h": nn.ModuleList([self.block_class(config, layer) for layer in range(config.n_layer)]),
            }
        )
        self.lm_head = Linear(config.n_embd, vocabulary)
        self.add_extras()

    def add_extras(self) -> None:
        """Add the parameters other than embedding, layers and unembedding."""
        config = self.config
        vocabulary, kv_width = config.padded_vocab_size, config.n_kv_head * config.head_dim
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

    @property
    def blocks(self) -> list[Any]:
        """The transformer layers, first to last."""
        return list(self.transformer["h"])  # type: ignore[arg-type]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set the matrices, uniform in +-bound, sqrt(3 / C), to keep the variance.

        The last is zero, so that the block starts as the identity.
        """
        config = self.config
        bound = (3.0 / config.n_embd) ** 0.5
        init_normal(cast("nn.Embedding", self.transformer["wte"]).weight, 0.8, generator)
        init_normal(self.lm_head.weight, 0.001, generator)
        for table in cast("Iterable[nn.Embedding]", self.value_embeds.values()):
            init_uniform(table.weight, -bound, bound, generator)
        if self.bigram is not None:
            self.bigram.weight.zero_()
        for block in self.blocks:
            self.init_block(block, generator)
        progress = torch.linspace(0.0, 1.0, config.n_layer) if config.n_layer > 1 else torch.zeros(1)
        self.resid_lambdas.copy_(1.15 - 0.10 * progress)
        self.x0_lambdas.copy_(0.20 - 0.15 * progress)
        init_uniform(self.smear_gate.weight, 0.0, 0.02, generator)
        self.smear_lambda.zero_()
        self.backout_lambda.fill_(0.2)

    def init_block(self, block: Any, generator: torch.Generator | None) -> None:
        """Set a layer's matrices."""
        bound = (3.0 / self.config.n_embd) ** 0.5
        for matrix in (block.attn.c_q, block.attn.c_k, block.attn.c_v):
            init_uniform(matrix.weight, -bound, bound, generator)
        block.mlp.init_weights(bound, generator)
        block.attn.c_proj.weight.zero_()
        if self.config.has_value_embedding(block.attn.layer):
            init_uniform(block.attn.ve_gate.weight, 0.0, 0.02, generator)

    def states(self, inputs: Tensor, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        """Final normed states, (B, T, C) in the compute dtype, of (B, T) token ids; the context shows those before.

        Cosines and sines of the positions are (T, D/2) or (B, T, D/2), in the compute dtype.
        """
        x = self.first_states(inputs, context)
        first, middle = x, x
        for layer, block in enumerate(self.blocks):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * first
            table = self.value_embeds[str(layer)] if self.config.has_value_embedding(layer) else None
            value_embedding = None if table is None else table(inputs).to(x.dtype)
            x = self.run_block(block, x, value_embedding, cos, sin, context)
            if layer == self.config.n_layer // 2:
                middle = x
        return norm(x - self.backout_lambda.to(x.dtype) * middle)

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """The states after a layer; here activation checkpointing has its place."""
        return block(*inputs)

    def first_states(self, inputs: Tensor, context: Context) -> Tensor:
        """Return the input of the first layer: normalized, smeared embeddings."""
        before = None if self.bigram is None else previous_tokens(inputs, context)
        return self._smear(self.embed(inputs, before), context)

    def _smear(self, x: Tensor, context: Context) -> Tensor:
        """Add to each token a gated share of the un-smeared token before it; the very first has none."""
        gate, previous = self.smear_openings(x), context.previous_embedding
        if previous is None:
            smeared = torch.cat((x[:, :1], x[:, 1:] + gate[:, 1:] * x[:, :-1]), dim=1)
        else:
            smeared = x + gate * torch.cat((previous, x[:, :-1]), dim=1)
        context.previous_embedding = x[:, -1:]
        return smeared

    def embed(self, token_ids: Tensor, before: Tensor | None) -> Tensor:
        """Normed embeddings, (B, T, C), of (B, T) ids and, if the model has bigram embeddings, of those before them."""
        x = self.transformer["wte"](token_ids).to(self.compute_dtype)
        if self.bigram is not None and before is not None:
            x = x + self.bigram(bigram_ids(token_ids, before, self.bigram.num_embeddings)).to(x.dtype)
        return norm(x)

    def smear_openings(self, x: Tensor) -> Tensor:
        """Share of the token before that each embedding takes in, (B, T, 1)."""
        # a sum, not a product with one column: libraries compute that differently for different numbers of rows
        opening = (x[..., :SMEAR_GATE_CHANNELS] * self.smear_gate.weight[0].to(x.dtype)).sum(dim=-1, keepdim=True)
        return self.smear_lambda.to(x.dtype) * torch.sigmoid(opening)

    def cap_logits(self, logits: Tensor) -> Tensor:
        """Float32 logits of raw ones, (..., V) -> (..., V). A variant that overrides it does without the loss kernels."""
        return softcap(logits) if self.is_capped else logits.float()

"""The architecture of Qwen3 (https://arxiv.org/abs/2505.09388), which other programs run without code of ours.

Rotary positions, QK-norm, RMSNorm with weights, a gated MLP, no biases. What nanochat has beyond that is absent: value
embeddings, residual scalars, smear, backout, sliding windows, softcap. Widths, initialisation and optimizer groups follow
the same depth dial. The gated MLP has three matrices of 8/3 C in place of two of 4 C, which is as many weights.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lit.model.config import GPTConfig
from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.layers import Linear, init_normal, init_uniform
from nanochat_lit.model.rotary import rotate
from nanochat_lit.model.transformer import QK_SCALE, Attention, Block, Context

NORM_EPS = 1e-6
"""Added to the mean square in every norm."""

MLP_MULTIPLE = 64
"""The MLP's hidden width is a multiple of this; quantized formats need multiples of 32."""

TIED_STD = 0.02
"""Initial standard deviation of a matrix that is both embedding and unembedding."""


def mlp_width(config: GPTConfig) -> int:
    """Hidden channels of the gated MLP: 8/3 of the width, rounded up."""
    return math.ceil(8 * config.n_embd / 3 / MLP_MULTIPLE) * MLP_MULTIPLE


class WeightedNorm(nn.Module):
    """Root-mean-square norm with a weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Norm of the last dimension, in the input's dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPS)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020. https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = mlp_width(config)
        self.c_gate = Linear(config.n_embd, hidden)
        self.c_fc = Linear(config.n_embd, hidden)
        self.c_proj = Linear(hidden, config.n_embd)

    def init_weights(self, bound: float, generator: torch.Generator | None) -> None:
        """Set the matrices, uniform in +-bound; the last is zero, so that the block starts as the identity."""
        init_uniform(self.c_gate.weight, -bound, bound, generator)
        init_uniform(self.c_fc.weight, -bound, bound, generator)
        self.c_proj.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Each token by itself. (B, T, C) -> (B, T, C)."""
        return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))


class Qwen3Attention(Attention):
    """Causal attention whose queries and keys are normed per head before they are rotated."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm, self.k_norm = WeightedNorm(config.head_dim), WeightedNorm(config.head_dim)

    def queries_and_keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Attention`."""
        q = self.q_norm(self.c_q(x).view(*x.shape[:2], -1, self.head_dim))
        k = self.k_norm(self.c_k(x).view(*x.shape[:2], -1, self.head_dim))
        return rotate(q, cos, sin), rotate(k, cos, sin)


class Qwen3Block(Block):
    """One transformer layer with weighted norms."""

    attention_class = Qwen3Attention
    mlp_class = GatedMLP

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.attn_norm, self.mlp_norm = WeightedNorm(config.n_embd), WeightedNorm(config.n_embd)

    def forward(self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        """Both parts, each added to the residual stream. (B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.attn_norm(x), value_embedding, cos, sin, context)
        return x + self.mlp(self.mlp_norm(x))


class _TiedEmbedding(nn.Module):
    """Looks tokens up in the unembedding, which stays the only parameter."""

    def __init__(self, lm_head: Linear) -> None:
        super().__init__()
        self._owner = [lm_head]  # in a list, so that it is not registered a second time

    def forward(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._owner[0].weight)


class Qwen3GPT(GPT):
    """A Qwen3 of the given shape; see `GPT`."""

    block_class = Qwen3Block
    is_capped = False

    def add_extras(self) -> None:
        """Add the last norm; a tied embedding takes the place of the other."""
        self.norm = WeightedNorm(self.config.n_embd)
        if self.config.tie_embeddings:
            self.transformer["wte"] = _TiedEmbedding(self.lm_head)

    def _set_rotary_tables(self) -> None:
        super()._set_rotary_tables()
        self.sin = -self.sin  # Qwen3 turns the other way than nanochat

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter and table; a model made on the meta device is whole after `to_empty` and this."""
        is_tied = self.config.tie_embeddings
        if not is_tied:
            init_normal(cast("nn.Embedding", self.transformer["wte"]).weight, 0.8, generator)
        init_normal(self.lm_head.weight, TIED_STD if is_tied else 0.001, generator)
        for block in self.blocks:
            self.init_block(block, generator)
        for module in self.modules():
            if isinstance(module, WeightedNorm):
                module.weight.fill_(1.0)
        for block in self.blocks:  # as sharp as nanochat's attention at its start
            block.attn.q_norm.weight.fill_(QK_SCALE)
            block.attn.k_norm.weight.fill_(QK_SCALE)
        self._set_rotary_tables()

    def states(self, inputs: Tensor, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        """As in `Transformer`."""
        x = self.transformer["wte"](inputs).to(self.compute_dtype)
        for block in self.blocks:
            x = self.run_block(block, x, None, cos, sin, context)
        return self.norm(x)

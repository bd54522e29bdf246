"""nanochat's architecture of 2025, in which its first models were published; transformers has it as NanoChatForCausalLM.

Without value embeddings, residual scalars, smear, backout and windows; rotary base 10,000, attention without a scale of its own.
"""

from typing import cast

import torch
from torch import Tensor, nn

from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.layers import init_normal, norm
from nanochat_lit.model.rotary import rotate
from nanochat_lit.model.transformer import Attention, Block, Context

ROTARY_BASE_2025 = 10_000.0


class PlainAttention(Attention):
    """Attention whose queries and keys have a mean square of 1."""

    def queries_and_keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Attention`."""
        q = self.c_q(x).view(*x.shape[:2], -1, self.head_dim)
        k = self.c_k(x).view(*x.shape[:2], -1, self.head_dim)
        return norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))


class PlainBlock(Block):
    """One transformer layer."""

    attention_class = PlainAttention


class Nanochat2025GPT(GPT):
    """A GPT of 2025; see `GPT`."""

    block_class = PlainBlock
    rotary_base = ROTARY_BASE_2025

    def add_extras(self) -> None:
        """Add nothing."""

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter and table.

        Args:
            generator: Source of randomness; None uses torch's global one.
        """
        init_normal(cast("nn.Embedding", self.transformer["wte"]).weight, 0.8, generator)
        init_normal(self.lm_head.weight, 0.001, generator)
        for block in self.blocks:
            self.init_block(block, generator)
        self._set_rotary_tables()

    def states(self, inputs: Tensor, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        """As in `Transformer`."""
        x = norm(self.transformer["wte"](inputs).to(self.compute_dtype))
        for block in self.blocks:
            x = self.run_block(block, x, None, cos, sin, context)
        return norm(x)

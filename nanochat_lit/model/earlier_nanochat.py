"""nanochat's architectures before March 2026, with rotary base 10,000 and attention without a scale of its own.

| architecture | differences from today's |
|---|---|
| nanochat2025 | no value embeddings, residual scalars, smear, backout and windows; transformers' NanoChatForCausalLM |
| nanochat2026 | value embeddings with gates of 32 channels that reach up to 2; short windows of half the context |

Parameters of smear and backout, which came later, are part of a nanochat2026 model and start at zero.
"""

from typing import cast

import torch
from torch import Tensor, nn

from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.layers import init_normal, norm
from nanochat_lit.model.rotary import rotate
from nanochat_lit.model.transformer import Attention, Block, Context

EARLIER_ROTARY_BASE = 10_000.0


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
    rotary_base = EARLIER_ROTARY_BASE

    def add_extras(self) -> None:
        """Add nothing."""

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter and table; without a generator, from torch's global one."""
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


class Attention2026(PlainAttention):
    """Attention with the gates of early 2026."""

    gate_channels = 32

    def value_gate(self, x: Tensor) -> Tensor:
        """As in `Attention`."""
        return 2.0 * torch.sigmoid(self.ve_gate(x[..., : self.gate_channels]))


class Block2026(Block):
    """One transformer layer."""

    attention_class = Attention2026


class Nanochat2026GPT(GPT):
    """A GPT of January to March 2026; see `GPT`."""

    block_class = Block2026
    rotary_base = EARLIER_ROTARY_BASE

    @classmethod
    def constants(cls) -> dict[str, float]:
        """As in `Transformer`."""
        return {"rope_theta": cls.rotary_base, "qk_scale": 1.0, "value_gate_scale": 2.0}

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter and table; see `Transformer.init_weights`."""
        super().init_weights(generator)
        for neutral in (self.smear_gate.weight, self.backout_lambda):
            neutral.zero_()

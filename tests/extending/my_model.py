"""What somebody adds from outside: a variant of the architecture, in a file of its own, as exported folders carry it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lit import GPT
from nanochat_lit.model.layers import Linear, init_uniform
from nanochat_lit.model.transformer import Block


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer 2020. https://arxiv.org/abs/2002.05202) with as many weights as the reference's."""

    def __init__(self, config):
        super().__init__()
        hidden = 8 * config.n_embd // 3
        self.c_gate = Linear(config.n_embd, hidden)
        self.c_fc = Linear(config.n_embd, hidden)
        self.c_proj = Linear(hidden, config.n_embd)

    def init_weights(self, bound: float, generator: torch.Generator | None) -> None:
        init_uniform(self.c_gate.weight, -bound, bound, generator)
        init_uniform(self.c_fc.weight, -bound, bound, generator)
        self.c_proj.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))


class SwiGLUBlock(Block):
    mlp_class = SwiGLU


class SwiGLUGPT(GPT):
    """A gated MLP, and a softcap that is learned."""

    block_class = SwiGLUBlock

    def __init__(self, config, *args, **options):
        super().__init__(config, *args, **options)
        self.cap = nn.Parameter(torch.tensor(15.0))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        super().init_weights(generator)
        with torch.no_grad():
            self.cap.fill_(15.0)

    def cap_logits(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits.float() / self.cap)

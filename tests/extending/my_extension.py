"""What somebody adds from outside: a variant of the architecture, an optimizer, a task, a data set, a reward, a callback."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lit.model.gpt import GPT, Block
from nanochat_lit.model.layers import Linear, init_uniform


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


class SignSGD(torch.optim.Optimizer):
    """The sign of the gradient times the learning rate."""

    def __init__(self, params, lr: float = 1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
        return loss

"""Layers of the model: norm, linear, embedding, softcap, and weight initialization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOFTCAP = 15.0
"""Logits are squeezed smoothly into (-SOFTCAP, SOFTCAP)."""


def norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension, without a learnable weight."""
    return F.rms_norm(x, (x.shape[-1],))


def softcap(logits: Tensor) -> Tensor:
    """Squeeze logits into (-SOFTCAP, SOFTCAP) in float32 (Gemma 2, https://arxiv.org/abs/2408.00118)."""
    return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)


class Linear(nn.Linear):
    """A bias-free linear layer that computes in its input's dtype, whatever dtype its weight is stored in."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """Map the last dimension, (..., in_features) -> (..., out_features)."""
        return F.linear(input, self.weight.to(input.dtype))


def make_table(num_rows: int, width: int) -> nn.Embedding:
    """Return an embedding with uninitialized weights; nn.Embedding would initialize them needlessly."""
    return nn.Embedding.from_pretrained(torch.empty(num_rows, width), freeze=False)


def init_normal(parameter: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill a parameter from a normal distribution, in place."""
    parameter.copy_(torch.randn(parameter.shape, generator=generator, device=parameter.device) * std)


def init_uniform(parameter: Tensor, low: float, high: float, generator: torch.Generator | None) -> None:
    """Fill a parameter from a uniform distribution, in place."""
    parameter.copy_(torch.rand(parameter.shape, generator=generator, device=parameter.device) * (high - low) + low)

"""What the blocks are made of: norm, linear layers, embeddings, and how their weights start."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lit.model.float8 import MULTIPLE, float8_linear


def norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension, without a learnable weight."""
    return F.rms_norm(x, (x.shape[-1],))


class Linear(nn.Linear):
    """A bias-free linear layer that computes in its input's dtype, whatever dtype its weight is stored in."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.trains_in_float8 = False
        """Whether it computes in float8 while gradients are wanted."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """Map the last dimension, (..., in_features) -> (..., out_features)."""
        if self.trains_in_float8 and torch.is_grad_enabled() and input.shape[:-1].numel() % MULTIPLE == 0:
            return float8_linear(input, self.weight)
        return F.linear(input, self.weight.to(input.dtype))


def make_table(num_rows: int, width: int) -> nn.Embedding:
    """An embedding whose weights are not set yet; nn.Embedding would fill them, for nothing."""
    return nn.Embedding.from_pretrained(torch.empty(num_rows, width), freeze=False)


def init_normal(parameter: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill a parameter from a normal distribution, in place."""
    parameter.copy_(torch.randn(parameter.shape, generator=generator, device=parameter.device) * std)


def init_uniform(parameter: Tensor, low: float, high: float, generator: torch.Generator | None) -> None:
    """Fill a parameter from a uniform distribution, in place."""
    parameter.copy_(torch.rand(parameter.shape, generator=generator, device=parameter.device) * (high - low) + low)

"""Linear layers whose matrix multiplications are in 8-bit floats while training (Micikevicius et al. 2022. https://arxiv.org/abs/2209.05433).

Each operand is scaled by one factor per tensor and micro-batch, so that its largest entry is the largest float8 number.
Activations and weights take e4m3, gradients e5m2, which has more range and less precision. The weight stays as it is
stored, and its gradient is a float32 sum. The operator also runs on a CPU, slowly, for tests.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.torch_internals import scaled_matmul
from nanochat_lit.model.layers import Linear
from nanochat_lit.model.loss_kernel import add_in_place

MULTIPLE = 16
"""The operator needs both dimensions of its second operand to be multiples of this."""

MIN_FEATURES = 128
"""Minimum size of a layer; in smaller ones scaling costs more than the matmul saves."""

TINY = 1e-12
"""Smallest amplitude that is scaled up."""

Scaled = tuple[Tensor, Tensor]
"""Float8 entries, and the float32 scalar to multiply them by."""


def allows_float8(in_features: int, out_features: int) -> bool:
    """Return whether float8 is supported and faster for a linear layer of these dimensions."""
    dimensions = (in_features, out_features)
    return all(size % MULTIPLE == 0 for size in dimensions) and min(dimensions) >= MIN_FEATURES


def to_float8(x: Tensor, dtype: torch.dtype) -> Scaled:
    """Scale a tensor into the range of a float8 dtype."""
    largest = torch.finfo(dtype).max
    scale = largest / x.abs().max().float().clamp(min=TINY)
    return (x.float() * scale).clamp(-largest, largest).to(dtype), scale.reciprocal()


def _by_columns(x: Tensor) -> Tensor:
    """Return the matrix in column-major order, as required for the second operand."""
    return x.t().contiguous().t()


def _matmul(left: Scaled, right: Scaled, dtype: torch.dtype, *, fast: bool = False) -> Tensor:
    """Multiply (m, k) by (k, n), which is column-major; `fast` accumulates with less precision, for forward passes."""
    (a, scale_a), (b, scale_b) = left, right
    return scaled_matmul(a, b, scale_a, scale_b, dtype, fast=fast)


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        x, x_scale = to_float8(rows, torch.float8_e4m3fn)
        w, w_scale = to_float8(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x, x_scale, w, w_scale)
        ctx.weight_dtype = weight.dtype
        return _matmul((x, x_scale), (w.t(), w_scale), rows.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, x_scale, w, w_scale = ctx.saved_tensors
        gradient, scale = to_float8(grad_output, torch.float8_e5m2)
        grad_rows = _matmul((gradient, scale), (_by_columns(w), w_scale), grad_output.dtype)
        grad_weight = _matmul((gradient.t().contiguous(), scale), (_by_columns(x), x_scale), ctx.weight_dtype)
        return grad_rows, grad_weight


def float8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Map the last dimension, (..., K) -> (..., N), by a weight (N, K); N, K and the number of rows are multiples of 16."""
    out = _Float8Linear.apply(x.reshape(-1, x.shape[-1]), weight)
    return out.view(*x.shape[:-1], weight.shape[0])


class Float8Linear(Linear):
    """A linear layer that computes in float8 if gradients are enabled."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """Map the last dimension, (..., in_features) -> (..., out_features)."""
        if torch.is_grad_enabled() and input.shape[:-1].numel() % MULTIPLE == 0:
            return float8_linear(input, self.weight)
        return super().forward(input)


class Float8ChunkMatmuls:
    """As `loss.ChunkMatmuls` in float8; `scaling` is `to_float8` or a compiled twin."""

    def __init__(
        self, weight: Tensor, dtype: torch.dtype, scaling: Callable[[Tensor, torch.dtype], Scaled] = to_float8
    ) -> None:
        self._scaling, self._dtype = scaling, dtype
        entries, scale = scaling(weight, torch.float8_e4m3fn)
        self._to_logits, self._to_rows = (entries.t(), scale), (_by_columns(entries), scale)
        self._rows: Scaled

    def logits(self, rows: Tensor) -> Tensor:
        """(n, V) raw logits of (n, C) states."""
        self._rows = self._scaling(rows, torch.float8_e4m3fn)
        return _matmul(self._rows, self._to_logits, self._dtype, fast=True)

    def add_gradients(self, gradient: Tensor, grad_rows: Tensor, grad_weight: Tensor) -> None:
        """From the gradient of the logits just made: set that of the rows, add that of the weight."""
        (entries, scale), (rows, rows_scale) = self._scaling(gradient, torch.float8_e5m2), self._rows
        grad_rows.copy_(_matmul((entries, scale), self._to_rows, self._dtype))
        by_rows = entries.t().contiguous()
        add_in_place(grad_weight, _matmul((by_rows, scale), (_by_columns(rows), rows_scale), torch.float32))

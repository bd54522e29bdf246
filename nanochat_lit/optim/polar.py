"""Orthogonalisation of stacks of matrices: row equilibration, Polar Express iterations, rescaling."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

POLAR_EXPRESS_COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""One (a, b, c) per iteration; optimal for five iterations, safety factor 2e-2, cushion 2."""


def equilibrate_rows(matrices: Tensor) -> Tensor:
    """Scale every row of each matrix to the root mean square row norm (MuonEq. https://arxiv.org/abs/2603.28254)."""
    row_norms = torch.linalg.vector_norm(matrices, dim=-1, keepdim=True, dtype=torch.float32)
    mean_norm = row_norms.square().mean(dim=-2, keepdim=True).sqrt()  # ||X||_F / sqrt(m)
    return matrices * (mean_norm / row_norms.clamp(min=1e-6)).to(matrices.dtype)


AddProduct: TypeAlias = Callable[[Tensor, float, Tensor, Tensor, float], Tensor]


def add_product(x: Tensor, a: float, left: Tensor, right: Tensor, b: float) -> Tensor:
    """Return a * x + b * left @ right."""
    return a * x + b * (left @ right)


def polar_express(matrices: Tensor) -> Tensor:
    """Approximate the orthogonal polar factor of each matrix, rescaled to the exact factor's Frobenius norm.

    Args:
        matrices: (K, m, n), in the dtype of the matmuls.

    Reference:
        Amsel et al. 2025, The Polar Express. https://arxiv.org/abs/2505.16932; the final rescale: Muon+,
        https://arxiv.org/abs/2602.21545
    """
    x = matrices / (_frobenius(matrices) * 1.01 + 1e-6).to(matrices.dtype)
    x = polar_iterations(x)
    return x * (min(matrices.shape[-2:]) ** 0.5 / _frobenius(x).clamp(min=1e-6)).to(x.dtype)


def polar_iterations(x: Tensor, add_product: AddProduct = add_product) -> Tensor:
    """Run the matmuls of `polar_express` on (K, m, n), which drive all singular values towards a common value.

    Frobenius norms are below 1. A replacement of `add_product` may overwrite its first argument.
    """
    is_tall = x.shape[-2] > x.shape[-1]  # the Gram matrix of the short side is smaller
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS:
        gram = x.mT @ x if is_tall else x @ x.mT
        polynomial = add_product(gram, b, gram, gram, c)
        x = add_product(x, a, x, polynomial, 1.0) if is_tall else add_product(x, a, polynomial, x, 1.0)
    return x


def _frobenius(matrices: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=torch.float32)

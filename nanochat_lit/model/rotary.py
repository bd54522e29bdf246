"""Rotary position embedding (Su et al. 2021, RoFormer. https://arxiv.org/abs/2104.09864), halves rotated, base 100000."""

import torch
from torch import Tensor

ROTARY_BASE = 100_000.0


def rotary_at(positions: Tensor, head_dim: int, base: float = ROTARY_BASE) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions, (...) -> twice (..., head_dim / 2), float32."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / (base ** (channels / head_dim))
    angles = positions.float().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotary_tables(
    length: int, head_dim: int, *, device: torch.device | None = None, base: float = ROTARY_BASE
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each (length, head_dim / 2), float32."""
    return rotary_at(torch.arange(length, dtype=torch.float32, device=device), head_dim, base)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the head dimension of (B, T, H, D) by cos and sin, (T, D/2) or (B, T, D/2).

    Turns by minus theta, as nanochat does: only the difference of positions matters, and its checkpoints depend on it.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # (..., T, 1, D/2): one table for all heads
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)

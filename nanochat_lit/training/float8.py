"""Training with 8-bit float matrix products, by torchao, on GPUs that have them.

Weights stay what they are; while gradients are wanted, the inputs of each large product are scaled to float8 (Micikevicius
et al. 2022. https://arxiv.org/abs/2209.05433). Evaluation and exports are in the compute dtype.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from nanochat_lit.common.errors import UserError, missing_package
from nanochat_lit.model import GPT
from nanochat_lit.model.layers import Linear

CAPABILITY = (8, 9)
"""First CUDA compute capability with float8 products (Ada); Hopper and Blackwell have them too."""

MULTIPLE = 16
"""The products want both dimensions to be multiples of this."""

MIN_FEATURES = 128
"""In smaller layers scaling costs more than the faster product saves."""


def allows_float8(in_features: int, out_features: int) -> bool:
    """Whether a linear layer of these dimensions can be, and is worth being, computed in float8."""
    dimensions = (in_features, out_features)
    return all(size % MULTIPLE == 0 for size in dimensions) and min(dimensions) >= MIN_FEATURES


def check_float8(device_type: str, capability: tuple[int, int] | None, compute_dtype: torch.dtype) -> None:
    """Make sure that `fp8: true` can work.

    Args:
        device_type: "cuda", "cpu" or another of torch's words.
        capability: CUDA compute capability.
        compute_dtype: Of what stays outside float8.

    Raises:
        UserError: If not; it says why.
    """
    if device_type != "cuda":
        raise UserError(f"fp8 needs a CUDA GPU, this run is on {device_type}; leave model.fp8 out")
    major, minor = capability or (0, 0)
    if (major, minor) < CAPABILITY:
        raise UserError(
            f"fp8 needs compute capability 8.9 (Ada, Hopper, Blackwell), this GPU has {major}.{minor}; leave model.fp8 out"
        )
    if compute_dtype != torch.bfloat16:
        raise UserError(
            f"fp8 goes with compute_dtype bfloat16, this run has {str(compute_dtype).removeprefix('torch.')}"
        )
    if find_spec("torchao") is None:
        raise missing_package("model.fp8", "torchao", "fp8")


def convert_to_float8(model: GPT, **options: Any) -> tuple[int, int]:
    """Let the blocks' linear layers compute in float8 while they train, where their dimensions allow it.

    Parameters and their names stay the same.

    Args:
        model: On its device.
        options: Of torchao's Float8LinearConfig.

    Returns:
        Layers converted, and all linear layers of the blocks.
    """
    torchao = import_module("torchao.float8")
    config = torchao.Float8LinearConfig(**options)
    linears = [part for block in model.blocks for part in block.modules() if isinstance(part, Linear)]
    chosen = [linear for linear in linears if allows_float8(linear.in_features, linear.out_features)]
    for linear in chosen:
        linear.train_with(torchao.convert_to_float8_training(linear, config=config))
    return len(chosen), len(linears)

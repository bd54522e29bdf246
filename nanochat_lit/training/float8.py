"""`fp8`: decides whether large matmuls run in float8, and converts the layers."""

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPT
from nanochat_lit.model.float8 import Float8Linear, allows_float8
from nanochat_lit.model.layers import Linear

CAPABILITY = (8, 9)
"""Minimum CUDA compute capability for float8 matmuls (Ada)."""

MODES = ("auto", "true", "false")


def decide_float8(
    mode: str, device_type: str, capability: tuple[int, int] | None, compute_dtype: torch.dtype
) -> tuple[bool, str]:
    """Return whether a run trains in float8, and the reason if not.

    Args:
        mode: "auto" (if the hardware supports it), "true" or "false".
        device_type: A torch device type, such as "cuda" or "cpu".
        capability: CUDA compute capability; None without CUDA, or on an AMD GPU.
        compute_dtype: Dtype of everything outside float8.

    Raises:
        UserError: If mode is "true" on unsupported hardware, or mode is invalid.
    """
    if mode not in MODES:
        raise UserError(f"fp8 is {mode!r}; use one of {', '.join(MODES)}")
    if mode == "false":
        return False, "off"
    reason = ""
    if device_type != "cuda":
        reason = f"fp8 needs a CUDA GPU, this run is on {device_type}"
    elif capability is None:
        reason = "fp8 needs an NVIDIA GPU"
    elif capability < CAPABILITY:
        major, minor = capability
        reason = f"fp8 needs compute capability 8.9 (Ada, Hopper, Blackwell), this GPU has {major}.{minor}"
    elif compute_dtype != torch.bfloat16:
        reason = f"fp8 needs compute_dtype bfloat16, this run uses {str(compute_dtype).removeprefix('torch.')}"
    if reason and mode == "true":
        raise UserError(f"{reason}; remove model.fp8 or set it to auto")
    return not reason, f"off: {reason}" if reason else "on"


def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU; None for other devices, including AMD GPUs."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device) if is_nvidia else None


def convert_to_float8(model: GPT) -> tuple[int, int]:
    """Convert lm_head and the blocks' linear layers to float8 for training, where their dimensions allow it.

    Parameters, evaluation and exports are unaffected.

    Returns:
        The number of converted layers, and the total number of linear layers including lm_head.
    """
    linears = [part for block in model.blocks for part in block.modules() if isinstance(part, Linear)]
    linears.append(model.lm_head)
    num_converted = 0
    for linear in linears:
        # of lm_head only the rows that are tokens are multiplied
        out_features = model.config.vocab_size if linear is model.lm_head else linear.out_features
        if allows_float8(linear.in_features, out_features):
            linear.__class__ = (
                Float8Linear  # keeps the parameters and their names, which the optimizer may hold already
            )
            num_converted += 1
    return num_converted, len(linears)

"""`fp8`: when a run's large matrix multiplications are in float8, and in which layers."""

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPT
from nanochat_lit.model.float8 import allows_float8
from nanochat_lit.model.layers import Linear

CAPABILITY = (8, 9)
"""First CUDA compute capability with float8 matmuls (Ada); Hopper and Blackwell have them too."""

MODES = ("auto", "true", "false")


def decide_float8(
    mode: str, device_type: str, capability: tuple[int, int] | None, compute_dtype: torch.dtype
) -> tuple[bool, str]:
    """Whether a run trains in float8, and in words why not.

    Args:
        mode: "auto" (where the hardware has it), "true" or "false".
        device_type: "cuda", "cpu" or another of torch's words.
        capability: CUDA compute capability; None without CUDA, or on an AMD GPU.
        compute_dtype: Of what stays outside float8.

    Raises:
        UserError: If it is forced where it cannot be, or mode is another word.
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
        reason = f"fp8 goes with compute_dtype bfloat16, this run has {str(compute_dtype).removeprefix('torch.')}"
    if reason and mode == "true":
        raise UserError(f"{reason}; leave model.fp8 out, or set it to auto")
    return not reason, f"off: {reason}" if reason else "on"


def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a CUDA device; None for others and for AMD's, which count differently."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device) if is_nvidia else None


def convert_to_float8(model: GPT) -> tuple[int, int]:
    """Let lm_head and the blocks' linear layers compute in float8 while gradients are wanted, where their dimensions allow it.

    Parameters, evaluation and exports stay as they are.

    Returns:
        The number of layers in float8, and of all linear layers of the blocks and lm_head.
    """
    linears = [part for block in model.blocks for part in block.modules() if isinstance(part, Linear)]
    for linear in linears:
        linear.trains_in_float8 = allows_float8(linear.in_features, linear.out_features)
    model.lm_head.trains_in_float8 = allows_float8(model.config.n_embd, model.config.vocab_size)
    linears.append(model.lm_head)
    return sum(linear.trains_in_float8 for linear in linears), len(linears)

"""Which kernel torch's fused attention runs: FlashAttention 3 and 4, where they are installed, or one of torch's own."""

import warnings
from importlib.util import find_spec

import torch
import torch.nn.attention

from nanochat_lit.common.torch_internals import fused_kernel_of
from nanochat_lit.model.attention import choose_attention
from nanochat_lit.model.config import GPTConfig

FLASH_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""What has to be importable for each implementation of torch's registry."""


def installed_flash_attention() -> tuple[str, ...]:
    """Implementations whose kernels are installed, if this torch has a registry for them; none of them is imported."""
    if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):  # torch 2.9 and 2.10
        return ()
    return tuple(name for name, module in FLASH_MODULES.items() if _is_installed(module))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def activate_flash_attention(capability: tuple[int, int], dtype: torch.dtype) -> str | None:
    """Let `scaled_dot_product_attention` use an installed FlashAttention, for the rest of the process.

    Args:
        capability: CUDA compute capability.
        dtype: Compute dtype.

    Returns:
        FA3 or FA4 if that is in use now, else None: nothing suitable is installed, or what is does not load (a warning
        says so). cuDNN's kernel, which torch would prefer, is turned off then.
    """
    installed = installed_flash_attention()
    name = choose_attention("cuda", is_windowed=False, capability=capability, dtype=dtype, installed=installed)
    if name not in FLASH_MODULES:
        return None
    try:
        torch.nn.attention.activate_flash_attention_impl(name)
    except (ImportError, RuntimeError) as error:  # built for another torch or CUDA
        reason = str(error).splitlines()[0]
        warnings.warn(f"{name} is installed but does not load ({reason}); torch's own kernel is used", stacklevel=2)
        return None
    torch.backends.cuda.enable_cudnn_sdp(False)
    return name


def fused_kernel(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that torch's fused attention runs in a training step of a model on a CUDA device.

    Args:
        config: Gives the shape.
        device: Where.
        dtype: Compute dtype.

    Returns:
        cuDNN, flash, memory-efficient or math; "sdpa" where torch does not say.
    """
    queries, keys = (
        torch.empty(1, heads, config.sequence_len, config.head_dim, device=device, dtype=dtype, requires_grad=True)
        for heads in (config.n_head, config.n_kv_head)
    )
    return fused_kernel_of(queries, keys)

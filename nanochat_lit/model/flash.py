"""FlashAttention 3 and 4, where they are installed, in place of torch's own flash kernel."""

import warnings
from importlib.util import find_spec

import torch

from nanochat_lit.model.attention import choose_attention

FLASH_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""What has to be importable for each implementation of torch's registry."""


def installed_flash_attention() -> tuple[str, ...]:
    """Implementations whose kernels are installed; nothing is imported to find out."""
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
        says so).
    """
    installed = installed_flash_attention()
    name = choose_attention("cuda", is_windowed=False, capability=capability, dtype=dtype, installed=installed)
    if name not in FLASH_MODULES:
        return None
    from torch.nn.attention import activate_flash_attention_impl

    try:
        activate_flash_attention_impl(name)
    except (ImportError, RuntimeError) as error:  # built for another torch or CUDA
        reason = str(error).splitlines()[0]
        warnings.warn(f"{name} is installed but does not load ({reason}); torch's own kernel is used", stacklevel=2)
        return None
    return name

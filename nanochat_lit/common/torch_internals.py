"""Every part of torch that has no public name, in one file. tests/common/test_torch_internals.py has a test per assumption.

Importing this module does not import torch's compiler.
"""

from typing import Any

import torch
from torch import Tensor

SDPA_KERNELS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}
"""Names of the values of torch's SDPBackend."""

COSTLY_OPERATORS = (
    *("mm", "addmm", "bmm", "_scaled_mm"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
    *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_flash_attention_forward", "flex_attention"),
)
"""Names of the operators that do most of a block's arithmetic."""


def operator_name(operator: Any) -> str:
    """The name of an operator as a checkpointing policy meets it, without namespace and overload."""
    return str(getattr(operator, "_opname", None) or getattr(operator, "__name__", ""))


def flash_window_attention(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Windowed causal attention by torch's flash operator, which an active FlashAttention replaces.

    `scaled_dot_product_attention` has no argument for a window; the operator below it does.
    """
    num_queries, num_keys = queries.shape[1], keys.shape[1]
    options = {"window_size_left": window, "window_size_right": 0}
    flash = torch.ops.aten._flash_attention_forward
    return flash(queries, keys, values, None, None, num_queries, num_keys, 0.0, True, False, **options)[0]


def fused_kernel_of(queries: Tensor, keys: Tensor) -> str:
    """The kernel that causal `scaled_dot_product_attention` takes, (B, H, T, D) and (B, Hkv, T, D); "sdpa" where torch does not say."""
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return "sdpa"
    is_grouped = queries.shape[1] != keys.shape[1]
    chosen = choose(queries, keys, keys, None, 0.0, is_causal=True, enable_gqa=is_grouped)
    return SDPA_KERNELS.get(int(chosen), "sdpa")


def scaled_matmul(
    left: Tensor, right: Tensor, scale_left: Tensor, scale_right: Tensor, dtype: torch.dtype, *, fast: bool
) -> Tensor:
    """Product of float8 matrices, (m, k) by rows and (k, n) by columns; `fast` sums with less precision."""
    return torch.ops.aten._scaled_mm(left, right, scale_left, scale_right, out_dtype=dtype, use_fast_accum=fast)


def pack_weight(weight: Tensor) -> Tensor:
    """A weight (N, K) in oneDNN's blocks."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 1)


def packed_linear(rows: Tensor, packed: Tensor) -> Tensor:
    """(n, K) -> (n, N) by a weight of `pack_weight`."""
    return torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")


def has_bfloat16_onednn() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def version_of(tensor: Tensor) -> int:
    """A number that grows with every change in place."""
    return tensor._version


def overflows(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Whether gradients overflowed that a scaler has unscaled: one number per device, which may be changed in place."""
    return list(scaler._found_inf_per_device(optimizer).values())


def set_inductor_compiler(script: str) -> None:
    """Let TorchInductor run this C++ compiler."""
    import torch._inductor.config as inductor

    inductor.cpp.cxx = (None, script)

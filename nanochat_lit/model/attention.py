"""Causal attention, full or with a sliding window, by the fastest available implementation.

Shapes: B sequences, T queries, S keys, H heads, Hkv key/value heads, D head dim. A window w lets a query see itself and
the w tokens before it.

* On a GPU an installed FlashAttention 3 or 4 (model/attention.py) computes all. Else full attention is torch's fused kernel. A window is a
  FlexAttention block mask in training, for the one length that its mask was made for. Other lengths (evaluation, prompts) would
  each be compiled: they take blocks of queries through the fused kernel with a mask.
* On a CPU the queries are taken in blocks and each block meets only the keys that some query of it may see, so a window
  costs T * (w + block) scores instead of T * T / 2. Full attention uses the same blocks up to BLOCKED_FULL_LIMIT tokens
  (faster than the fused kernel on CPU when compiled, 2x at T = 512) and torch's fused kernel beyond.
"""

import warnings
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor

from nanochat_lit.common.compilers import missing_compiler
from nanochat_lit.common.torch_internals import flash_window_attention, fused_kernel_of
from nanochat_lit.model.config import GPTConfig

QUERY_BLOCK = 128
"""Queries per block of the blocked form on a CPU."""

GPU_QUERY_BLOCK = 512
"""Queries per block on other devices, which prefer fewer and larger kernels."""

BLOCKED_FULL_LIMIT = 1024
"""Longest full attention that the blocked form computes on CPU under torch.compile."""

FLEX_CAPABILITY = (8, 0)
"""CUDA compute capability from which windows are FlexAttention block masks; its kernels are compiled by Triton."""

FLASH_CAPABILITIES = {"FA4": (9, 10), "FA3": (9,)}
"""Major compute capabilities that each FlashAttention of torch's registry runs on."""

AttentionBackend = Literal["FA4", "FA3", "flex", "sdpa", "blocked"]


FLASH_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""Modules that each implementation of torch's registry needs."""


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
    """Make `scaled_dot_product_attention` use an installed FlashAttention for the rest of the process.

    Returns FA3 or FA4 if that is in use now, else None: nothing suitable for this CUDA capability is installed, or what
    is does not load (a warning says so). cuDNN's kernel, which torch would prefer, is turned off then.
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

    One of cuDNN, flash, memory-efficient or math; "sdpa" where torch does not say.
    """
    queries, keys = (
        torch.empty(1, heads, config.sequence_len, config.head_dim, device=device, dtype=dtype, requires_grad=True)
        for heads in (config.n_head, config.n_kv_head)
    )
    return fused_kernel_of(queries, keys)


def choose_attention(
    device_type: str,
    *,
    is_windowed: bool,
    capability: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    num_tokens: int = 2048,
    is_compiling: bool = False,
    can_compile: bool = True,
    installed: Collection[str] = (),
) -> AttentionBackend:
    """Return the attention implementation for whole sequences: FA4, FA3, flex, sdpa, or blocked.

    In a windowed layer some query does not see all tokens before it. `can_compile` states whether torch.compile works,
    which FlexAttention needs; `installed` are FlashAttention implementations ("FA3", "FA4") that can take the place of
    torch's own flash kernel.
    """
    if device_type != "cuda":
        is_blocked = is_windowed or (device_type == "cpu" and is_compiling and num_tokens <= BLOCKED_FULL_LIMIT)
        return "blocked" if is_blocked else "sdpa"
    capability = capability or (0, 0)
    for name in ("FA3", "FA4"):  # where both run, on Hopper, FA3 was written for it
        if name in installed and dtype == torch.bfloat16 and capability[0] in FLASH_CAPABILITIES[name]:
            return name
    if is_windowed:
        return "flex" if can_compile and capability >= FLEX_CAPABILITY else "blocked"
    return "sdpa"


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, window: int, window_mask: Any | None = None
) -> Tensor:
    """Compute attention of T queries, (B, T, H, D), to the keys and values, (B, S, Hkv, D), in their window.

    The queries are the last of the S positions. `window` is the number of tokens before itself that a query sees;
    `window_mask` is its block mask of `window_block_mask`, made beforehand for this T = S; used in training.
    """
    num_queries, num_keys = queries.shape[1], keys.shape[1]
    if num_queries == 1:
        start = max(0, num_keys - 1 - window)
        return fused_attention(queries, keys[:, start:], values[:, start:], is_causal=False)
    if num_queries != num_keys:
        return blocked_attention(queries, keys, values, window)
    is_windowed = window < num_keys - 1
    is_compiling = torch.compiler.is_compiling()
    if is_windowed and window_mask is not None and (is_compiling or torch.is_grad_enabled()):
        return flex_attention(queries, keys, values, window_mask)
    device = queries.device
    backend = choose_attention(
        device.type,
        is_windowed=is_windowed,
        dtype=queries.dtype,
        num_tokens=num_queries,
        is_compiling=is_compiling,
        **cuda_facts(device),
    )
    if is_windowed and backend in FLASH_CAPABILITIES:
        return flash_window_attention(queries, keys, values, window)
    if backend in ("flex", "blocked"):
        return blocked_attention(queries, keys, values, window)
    return fused_attention(queries, keys, values, is_causal=True)


class WholeSequences:
    """Context of whole sequences: each token attends to the preceding tokens of its sequence."""

    previous_embedding: Tensor | None = None
    previous_token: Tensor | None = None

    def __init__(self, window_masks: Mapping[tuple[int, int], Any]) -> None:
        self._window_masks = window_masks

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:  # noqa: ARG002
        """(B, T, H, D) and twice (B, T, Hkv, D) -> (B, T, H, D)."""
        return causal_attention(queries, keys, values, window, self._window_masks.get((queries.shape[1], window)))


def cuda_facts(device: torch.device) -> dict[str, Any]:
    """Return the arguments of `choose_attention` for a CUDA device; empty for others."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    active = active_flash_attention()
    can_compile = torch.compiler.is_compiling() or not missing_compiler(device.type)
    return {
        "capability": (properties.major, properties.minor),
        "can_compile": can_compile,
        "installed": (active,) if active else (),
    }


def active_flash_attention() -> str | None:
    """The FlashAttention that replaces torch's own kernel in this process; torch versions without a registry have none."""
    from torch.nn import attention

    current = getattr(attention, "current_flash_attention_impl", None)
    return current() if current is not None else None


def prepare_to_compile() -> None:
    """Tell the compiler which functions are constant; not a decorator, which would import the compiler, 2 s, at once."""
    torch.compiler.assume_constant_result(active_flash_attention)


def steady_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Disable cuDNN for fused attention in this context, unless gradients are enabled.

    cuDNN builds a plan for each new shape, up to half a second each: worth it for the one shape of training, not for prompts,
    decoding and evaluation, whose lengths vary.
    """
    if device.type != "cuda" or torch.is_grad_enabled():
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool) -> Tensor:
    """Torch's fused kernel; every query sees every key, or those up to its own position when is_causal."""
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        is_causal=is_causal,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return out.transpose(1, 2)


def blocked_attention(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Windowed causal attention as a loop over blocks of queries; see `causal_attention` for the arguments."""
    rows, num_queries, num_heads, head_dim = queries.shape
    num_keys, num_kv_heads = keys.shape[1], keys.shape[2]
    offset = num_keys - num_queries
    group = num_heads // num_kv_heads
    q = queries.transpose(1, 2).reshape(rows, num_kv_heads, group, num_queries, head_dim)
    k, v = keys.transpose(1, 2), values.transpose(1, 2)  # (B, Hkv, S, D)
    is_cpu = q.device.type == "cpu"
    attend, size = (_attend_on_cpu, QUERY_BLOCK) if is_cpu else (_attend_fused, GPU_QUERY_BLOCK)
    outputs = []
    for start in range(0, num_queries, size):
        end = min(start + size, num_queries)
        first_key, last_key = max(0, offset + start - window), offset + end
        block = q[:, :, :, start:end].reshape(rows, num_kv_heads, group * (end - start), head_dim)
        query_position = torch.arange(offset + start, offset + end, device=q.device).unsqueeze(1)
        distance = query_position - torch.arange(first_key, last_key, device=q.device)
        visible = (distance >= 0) & (distance <= window)
        mixed = attend(block, k[:, :, first_key:last_key], v[:, :, first_key:last_key], visible)
        outputs.append(mixed.reshape(rows, num_heads, end - start, head_dim))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _attend_on_cpu(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Attention of (B, Hkv, group * Q, D) queries to (B, Hkv, K, D) keys and values under a mask (Q, K)."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    grouped = scores.view(*scores.shape[:2], -1, *visible.shape)
    weights = grouped.float().masked_fill(~visible, float("-inf")).softmax(dim=-1).to(values.dtype)
    return weights.view(scores.shape) @ values


def _attend_fused(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Same as `_attend_on_cpu` by torch's fused kernel, which does not store the scores."""
    mask = visible.repeat(queries.shape[2] // len(visible), 1)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


@lru_cache(maxsize=8)
def window_block_mask(num_tokens: int, window: int, device: torch.device) -> Any:
    """Return the FlexAttention block mask of a window.

    Create it outside of compiled code, which would create it again in every step.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= window)

    return create_block_mask(visible, None, None, num_tokens, num_tokens, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Any:
    return torch.compile(_torch_flex_attention(), dynamic=False)


def _torch_flex_attention() -> Any:
    from torch.nn.attention import flex_attention

    return flex_attention.flex_attention


def flex_attention(queries: Tensor, keys: Tensor, values: Tensor, window_mask: Any) -> Tensor:
    """Windowed causal attention by FlexAttention; see `causal_attention` for the shapes."""
    # under the compiler it becomes part of the graph; elsewhere it must be compiled, as its plain form is slow and large
    kernel = _torch_flex_attention() if torch.compiler.is_compiling() else _compiled_flex_attention()
    out = kernel(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        block_mask=window_mask,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return out.transpose(1, 2)

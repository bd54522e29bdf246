"""Causal attention, full or with a sliding window, in forms that cost what they should.

Shapes: B rows, T queries, S keys, H heads, Hkv key/value heads, D head dim. A window w lets a query see itself and the
w tokens before it.

* On a GPU a window is a FlexAttention block mask: blocks outside the window are never computed.
* Elsewhere the queries are taken in blocks and each block meets only the keys that some query of it may see, so a window
  costs T * (w + block) scores instead of T * T / 2. Full attention uses the same blocks up to BLOCKED_FULL_LIMIT tokens
  (faster than the fused kernel on CPU when compiled, 2x at T = 512) and torch's fused kernel beyond.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128
"""Queries per block of the blocked form."""

BLOCKED_FULL_LIMIT = 1024
"""Longest full attention that the blocked form computes on CPU under torch.compile."""


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Attention of T queries, the last of S positions, to the keys in their window.

    Args:
        queries: (B, T, H, D).
        keys: (B, S, Hkv, D) with S >= T; query t stands at position S - T + t.
        values: As keys.
        window: Tokens before itself that a query sees.

    Returns:
        (B, T, H, D).
    """
    num_queries, num_keys = queries.shape[1], keys.shape[1]
    if num_queries == 1:
        start = max(0, num_keys - 1 - window)
        return fused_attention(queries, keys[:, start:], values[:, start:], is_causal=False)
    is_full = window >= num_keys - 1
    if queries.device.type == "cuda" and num_queries == num_keys:
        if is_full:
            return fused_attention(queries, keys, values, is_causal=True)
        return _flex_attention(queries, keys, values, window)
    if is_full and num_queries == num_keys and not _prefers_blocks(num_queries):
        return fused_attention(queries, keys, values, is_causal=True)
    return blocked_attention(queries, keys, values, window)


def _prefers_blocks(num_queries: int) -> bool:
    return torch.compiler.is_compiling() and num_queries <= BLOCKED_FULL_LIMIT


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
    q = (queries * head_dim**-0.5).transpose(1, 2).reshape(rows, num_kv_heads, group, num_queries, head_dim)
    k, v = keys.transpose(1, 2), values.transpose(1, 2)  # (B, Hkv, S, D)
    outputs = []
    for start in range(0, num_queries, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, num_queries)
        first_key, last_key = max(0, offset + start - window), offset + end
        block = q[:, :, :, start:end].reshape(rows, num_kv_heads, group * (end - start), head_dim)
        scores = block @ k[:, :, first_key:last_key].transpose(-1, -2)
        scores = scores.view(rows, num_kv_heads, group, end - start, last_key - first_key)
        query_position = torch.arange(offset + start, offset + end, device=q.device).unsqueeze(1)
        distance = query_position - torch.arange(first_key, last_key, device=q.device)
        visible = (distance >= 0) & (distance <= window)
        weights = scores.float().masked_fill(~visible, float("-inf")).softmax(dim=-1).to(v.dtype)
        mixed = weights.view(rows, num_kv_heads, group * (end - start), -1) @ v[:, :, first_key:last_key]
        outputs.append(mixed.view(rows, num_heads, end - start, head_dim))
    return torch.cat(outputs, dim=2).transpose(1, 2)


@lru_cache(maxsize=8)
def _window_block_mask(num_tokens: int, window: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= window)

    return create_block_mask(visible, None, None, num_tokens, num_tokens, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex_attention(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    mask = _window_block_mask(queries.shape[1], window, queries.device)
    out = _compiled_flex_attention()(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        block_mask=mask,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return out.transpose(1, 2)

"""The entry of the hashed bigram embedding for each position (an idea of the modded-nanogpt speedrun).

The table is an embedding of (token before, token): what many pairs mean is known before any layer has run. Pairs that fall
into the same row share it. The first token of a sequence has the token 0 before it.

Shapes: B rows, T tokens.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nanochat_lit.model.kv_cache import KVCache
    from nanochat_lit.model.slot_cache import SlotCache

TOKEN_FACTOR, PREVIOUS_FACTOR = 36313, 27191
"""Odd, so that each spreads the ids over the rows."""


def bigram_rows(token_ids: Tensor, num_rows: int, kv_cache: "KVCache | SlotCache | None" = None) -> Tensor:
    """Rows of the pairs that end with these tokens.

    Args:
        token_ids: (B, T).
        num_rows: Of the table.
        kv_cache: Knows the tokens before these, and is told the last of these.

    Returns:
        (B, T) int64.
    """
    token_ids = token_ids.long()  # products of 32 bits would overflow
    before = None if kv_cache is None else kv_cache.previous_token
    if before is None:
        before = torch.zeros_like(token_ids[:, :1])
    previous = torch.cat((before, token_ids[:, :-1]), dim=1)
    if kv_cache is not None:
        kv_cache.previous_token = token_ids[:, -1:].clone()  # the caller may write into its tensor
    return ((token_ids * TOKEN_FACTOR) ^ (previous * PREVIOUS_FACTOR)) % num_rows

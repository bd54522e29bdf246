"""Key/value cache for decoding."""

import torch
from torch import Tensor

from nanochat_lit.model.attention import causal_attention
from nanochat_lit.model.config import GPTConfig


class KVCache:
    """Preallocated keys and values of `max_len` tokens of each sequence in all layers, filled from the left.

    `dtype` is the model's compute dtype.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        shape = (config.n_layer, batch_size, max_len, config.n_kv_head, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.previous_embedding: Tensor | None = None
        """(B, 1, C) normalised, un-smeared embedding of the last token; the next token's smear reads it."""
        self.previous_token: Tensor | None = None
        """(B, 1) id of the last token, int64; kept if the model has a bigram embedding, whose next entry depends on it."""
        self.position = 0
        """Number of tokens stored, the same for every sequence."""

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return self.keys.shape[1]

    @property
    def max_len(self) -> int:
        """Capacity in tokens."""
        return self.keys.shape[2]

    def rotary(self, cos: Tensor, sin: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return the rotary cos and sin of the new tokens, (T, D/2) each."""
        end = self.position + num_tokens
        return cos[self.position : end], sin[self.position : end]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        """Store the keys and values of new tokens, (B, T, Hkv, D), in one layer; return their attention, (B, T, H, D).

        A token, whose query is in (B, T, H, D), attends to `window` preceding tokens.
        """
        end = self.position + keys.shape[1]
        assert end <= self.max_len, f"cache of {self.max_len} positions asked to hold {end}"
        self.keys[layer, :, self.position : end] = keys
        self.values[layer, :, self.position : end] = values
        return causal_attention(queries, self.keys[layer, :, :end], self.values[layer, :, :end], window)

    def advance(self, num_tokens: int) -> None:
        """Advance the position by tokens that all layers have stored."""
        self.position += num_tokens

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only these sequences, such as unfinished samples."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        if self.previous_embedding is not None:
            self.previous_embedding = self.previous_embedding[rows]
        if self.previous_token is not None:
            self.previous_token = self.previous_token[rows]

    def reset(self) -> None:
        """Clear the cache."""
        self.position = 0
        self.previous_embedding = self.previous_token = None

"""Keys and values of the tokens seen so far, so that decoding computes each token once."""

import torch
from torch import Tensor

from nanochat_lit.model.config import GPTConfig


class KVCache:
    """Preallocated keys and values of every layer, filled from the left.

    Args:
        config: Shape of the model it serves.
        batch_size: Rows.
        max_len: Positions to make room for.
        device: Where it lives.
        dtype: The model's compute dtype.
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
        self.position = 0
        """Tokens stored so far, the same in every row."""

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.keys.shape[1]

    @property
    def max_len(self) -> int:
        """Positions there is room for."""
        return self.keys.shape[2]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens of one layer and return all of that layer's keys and values.

        Args:
            layer: Layer index.
            keys: (B, T, Hkv, D) of the new tokens, at `position` and after.
            values: As keys.

        Returns:
            (B, position + T, Hkv, D) each; views, not copies.
        """
        end = self.position + keys.shape[1]
        assert end <= self.max_len, f"cache of {self.max_len} positions asked to hold {end}"
        self.keys[layer, :, self.position : end] = keys
        self.values[layer, :, self.position : end] = values
        return self.keys[layer, :, :end], self.values[layer, :, :end]

    def expand(self, num_rows: int, max_len: int | None = None) -> "KVCache":
        """A new cache whose rows all continue from this cache's only row.

        Args:
            num_rows: Rows of the new cache.
            max_len: Its room; None keeps this cache's.
        """
        assert self.batch_size == 1, f"only a cache of one row can be expanded, this one has {self.batch_size}"
        room = self.max_len if max_len is None else max_len
        other = KVCache(self.config, num_rows, room, self.keys.device, self.keys.dtype)
        other.keys[:, :, : self.position] = self.keys[:, :, : self.position]
        other.values[:, :, : self.position] = self.values[:, :, : self.position]
        if self.previous_embedding is not None:
            other.previous_embedding = self.previous_embedding.expand(num_rows, -1, -1).clone()
        other.position = self.position
        return other

    def keep_rows(self, rows: Tensor) -> None:
        """Drop every row but these (finished samples cost nothing any more)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        if self.previous_embedding is not None:
            self.previous_embedding = self.previous_embedding[rows]

    def reset(self) -> None:
        """Forget everything stored."""
        self.position = 0
        self.previous_embedding = None

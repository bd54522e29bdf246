"""Config of a GPT, with nanochat's field names and optional extensions of the architecture."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nanochat_lit.common.errors import UserError

VOCAB_MULTIPLE = 64
"""Embedding and unembedding rows are padded up to a multiple of this (tensor cores like it); logits are cropped back."""

SMEAR_GATE_CHANNELS = 24
"""Leading channels of the embedding that the smear gate reads."""

VALUE_GATE_CHANNELS = 12
"""Leading channels of the attention input that the value-embedding gate reads."""

LIMITS = {
    "sequence_len": 2**20, "vocab_size": 2**24, "n_layer": 1024, "n_head": 2**12, "n_kv_head": 2**12, "n_embd": 2**17,
    "bigram_factor": 1000,
}  # fmt: skip
"""Maximum dimensions; larger values are assumed to be errors in the file and would exhaust memory."""

REFERENCE_ARCHITECTURE = "nanochat"
QWEN3 = "qwen3"
"""The architecture of Qwen3, which other programs run without our code; see model/qwen3.py."""
NANOCHAT_2025 = "nanochat2025"
"""The architecture of nanochat's models of 2025; see model/earlier_nanochat.py."""
NANOCHAT_2026 = "nanochat2026"
"""The architecture of nanochat from January to March 2026; see model/earlier_nanochat.py."""

NATIVE_ARCHITECTURES = (QWEN3, NANOCHAT_2025)
"""Those that transformers has a class of: without value embeddings, windows, bigram embeddings and padded vocabularies."""

ADDED_FIELDS = {"bigram_factor": 0, "architecture": REFERENCE_ARCHITECTURE, "tie_embeddings": False}
"""Fields that nanochat's config does not have, with their neutral values; JSON names them only where they differ."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Dimensions of a GPT.

    Raises:
        UserError: If the dimensions do not fit together.
    """

    sequence_len: int = 2048
    """Longest sequence in tokens, the context of training and inference."""
    vocab_size: int = 32768
    """Number of token ids."""
    n_layer: int = 12
    """Number of transformer blocks; equals the depth."""
    n_head: int = 6
    """Query heads per layer."""
    n_kv_head: int = 6
    """Key/value heads per layer; fewer than n_head (must divide it) is grouped-query attention."""
    n_embd: int = 768
    """Width of the residual stream in channels."""
    window_pattern: str = "SSSL"
    """Attention window per layer, tiled over the layers: L full context, S a quarter of it; the last layer is always L."""
    bigram_factor: int = 0
    """Entries of the hashed bigram embedding, as a multiple of vocab_size; 0 disables it."""

    architecture: str = REFERENCE_ARCHITECTURE
    """Model class: "nanochat", "qwen3", "nanochat2025", "nanochat2026", or the class path of a subclass of GPT."""
    tie_embeddings: bool = False
    """One matrix as embedding and unembedding; qwen3 only."""

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{name} is {value!r}; it must be a whole number of at least 1")
            if value > LIMITS.get(name, value):
                raise UserError(f"{name} is {value:,}; at most {LIMITS[name]:,} is possible")
        if type(self.bigram_factor) is not int or not 0 <= self.bigram_factor <= LIMITS["bigram_factor"]:
            raise UserError(
                f"bigram_factor is {self.bigram_factor!r}; it must be a whole number from 1 to "
                f"{LIMITS['bigram_factor']}, or 0 for no bigram embedding"
            )
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; "
                f"use n_embd {math.ceil(self.n_embd / self.n_head) * self.n_head} or another number of heads"
            )
        if self.head_dim % 2:
            raise UserError(
                f"the head dimension n_embd/n_head = {self.head_dim} is odd; rotary positions need an even one"
            )
        if self.n_head % self.n_kv_head:
            raise UserError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}")
        if self.n_embd < SMEAR_GATE_CHANNELS:
            raise UserError(
                f"n_embd {self.n_embd} is below {SMEAR_GATE_CHANNELS}, the channels that the smear gate reads"
            )
        if not isinstance(self.window_pattern, str) or not re.fullmatch("[SLsl]+", self.window_pattern):
            raise UserError(
                f"window_pattern {self.window_pattern!r} may hold only the letters S (short) and L (long), as in SSSL"
            )
        self._check_architecture()

    def _check_architecture(self) -> None:
        if not isinstance(self.architecture, str) or not all(map(str.isidentifier, self.architecture.split("."))):
            raise UserError(
                f"architecture is {self.architecture!r}; use {REFERENCE_ARCHITECTURE}, {QWEN3} or a class path such as "
                "my_module.MyGPT"
            )
        if not isinstance(self.tie_embeddings, bool):
            raise UserError(f"tie_embeddings is {self.tie_embeddings!r}; use true or false")
        if self.tie_embeddings and self.architecture != QWEN3:
            raise UserError(f"tie_embeddings needs architecture {QWEN3}; it is {self.architecture}")
        if self.architecture not in NATIVE_ARCHITECTURES:
            return
        if set(self.window_pattern.upper()) != {"L"}:
            raise UserError(
                f"window_pattern is {self.window_pattern}, but every layer of {self.architecture} sees the whole context; "
                "leave it out or use L"
            )
        if self.bigram_factor:
            raise UserError(
                f"bigram_factor is {self.bigram_factor}, but {self.architecture} has no bigram embedding; use 0"
            )

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        head_dim: int = 128,
        aspect_ratio: int = 64,
        n_embd: int | None = None,
        n_head: int | None = None,
        n_kv_head: int | None = None,
        window_pattern: str | None = None,
        **fields: Any,
    ) -> "GPTConfig":
        """Derive all dimensions from the depth.

        Args:
            depth: Number of layers; width is depth * aspect_ratio, rounded up to whole heads.
            head_dim: Channels per attention head.
            aspect_ratio: Channels of width per layer of depth.
            n_embd: Width; None derives it.
            n_head: Query heads; None derives them from the width and head_dim.
            n_kv_head: Key/value heads; None means as many as query heads.
            window_pattern: As the field; None is SSSL, and L for native architectures.
            **fields: The other fields.

        Raises:
            UserError: If the dimensions do not fit together.
        """
        if depth < 1 or head_dim < 2 or aspect_ratio < 1:
            raise UserError(
                f"depth {depth}, head_dim {head_dim}, aspect_ratio {aspect_ratio}: "
                "depth and aspect_ratio must be at least 1 and head_dim at least 2"
            )
        width = n_embd if n_embd is not None else math.ceil(depth * aspect_ratio / head_dim) * head_dim
        heads = n_head if n_head is not None else max(1, width // head_dim)
        default_pattern = "L" if fields.get("architecture") in NATIVE_ARCHITECTURES else "SSSL"
        pattern = default_pattern if window_pattern is None else window_pattern
        shape = {"n_layer": depth, "n_embd": width, "n_head": heads, "window_pattern": pattern.upper()}
        return cls(**shape, n_kv_head=heads if n_kv_head is None else n_kv_head, **fields)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """Return the config of JSON fields; raises an error that names unknown or missing ones."""
        names = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(values) - names), sorted(names - ADDED_FIELDS.keys() - set(values))
        if unknown or missing:
            raise UserError(f"not a nanochat-lit model config: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return nanochat's seven fields, and the extensions that differ from their neutral values, for JSON."""
        return {name: value for name, value in asdict(self).items() if ADDED_FIELDS.get(name) != value}

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding tables; not padded where transformers' own class has no others."""
        if self.architecture in NATIVE_ARCHITECTURES:
            return self.vocab_size
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def num_bigram_rows(self) -> int:
        """Entries of the hashed bigram embedding; 0 without one."""
        return self.bigram_factor * self.vocab_size

    @property
    def short_window(self) -> int:
        """Number of preceding tokens that a query attends to in a layer S."""
        if self.architecture == NANOCHAT_2026:
            return self.sequence_len // 2
        return math.ceil(self.sequence_len / 4 / 128) * 128

    @property
    def windows(self) -> tuple[int, ...]:
        """Number of preceding tokens that a query attends to, per layer."""
        pattern = self.window_pattern.upper()
        letters = [pattern[i % len(pattern)] for i in range(self.n_layer)]
        letters[-1] = "L"
        return tuple(self.sequence_len if letter == "L" else self.short_window for letter in letters)

    def has_value_embedding(self, layer: int) -> bool:
        """Whether this layer adds a value embedding: every second one, the last always; native architectures have none."""
        return self.architecture not in NATIVE_ARCHITECTURES and layer % 2 == (self.n_layer - 1) % 2

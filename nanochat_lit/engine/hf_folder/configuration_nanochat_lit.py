"""Dimensions of a nanochat-lit model, for transformers."""

from typing import Any

from transformers import PreTrainedConfig

from nanochat_lit.model.config import REFERENCE_ARCHITECTURE, GPTConfig
from nanochat_lit.model.layers import SOFTCAP
from nanochat_lit.model.transformer import Transformer as Architecture

DERIVED = ("intermediate_size", "num_hidden_layers", "head_dim", "sliding_window", "layer_types", "use_cache")


class Shape(GPTConfig):
    """GPTConfig with other numbers of embeddings: `resize_token_embeddings` does not pad them."""

    padded_vocab_size = num_bigram_rows = 0  # type: ignore[assignment]


class NanochatLitConfig(PreTrainedConfig):
    """Dimensions of a nanochat-lit model.

    `num_hidden_layers` is one more than `n_layer`: the last key/value cache belongs to no block, it stores which token
    came before (see PreviousToken). Bigram embeddings add another, for the token before that.

    Args:
        vocab_size: Number of token ids.
        padded_vocab_size: Entries of the embeddings; None pads vocab_size.
        hidden_size: Width of the residual stream.
        n_layer: Transformer blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        max_position_embeddings: Context in tokens.
        window_pattern: Attention windows, letters S and L tiled over the blocks; the last is always L.
        bigram_factor: Hashed bigram embeddings per token of the vocabulary; 0 for none.
        bigram_rows: Their number; None derives it. Adding tokens does not change it.
        final_logit_softcapping: Limit of the logits; None for an architecture with a limit of its own.
        architecture: Name of the architecture in nanochat-lit.
        kwargs: Of PreTrainedConfig, and the constants of the architecture.

    Raises:
        ValueError: If a constant differs from that of the code.
    """

    model_type = "nanochat_lit"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 (the name and form that transformers knows)

    def __init__(  # noqa: PLR0913 (a field each)
        self,
        vocab_size: int = 32768,
        padded_vocab_size: int | None = None,
        hidden_size: int = 768,
        n_layer: int = 12,
        num_attention_heads: int = 6,
        num_key_value_heads: int = 6,
        max_position_embeddings: int = 2048,
        window_pattern: str = "SSSL",
        bigram_factor: int = 0,
        bigram_rows: int | None = None,
        final_logit_softcapping: float | None = SOFTCAP,
        architecture: str = REFERENCE_ARCHITECTURE,
        **kwargs: Any,
    ) -> None:
        plain = GPTConfig(
            sequence_len=max_position_embeddings, vocab_size=vocab_size, n_layer=n_layer, n_head=num_attention_heads,
            n_kv_head=num_key_value_heads, n_embd=hidden_size, window_pattern=window_pattern, bigram_factor=bigram_factor,
            architecture=architecture,
        )  # fmt: skip
        self.vocab_size = vocab_size
        self.padded_vocab_size = padded_vocab_size or plain.padded_vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = 4 * hidden_size
        self.n_layer = n_layer
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = plain.head_dim
        self.max_position_embeddings = max_position_embeddings
        self.window_pattern = window_pattern
        self.bigram_factor = bigram_factor
        self.bigram_rows = plain.num_bigram_rows if bigram_rows is None else bigram_rows
        self.final_logit_softcapping = final_logit_softcapping
        self.architecture = architecture
        self.sliding_window = plain.short_window + 1  # transformers counts the token itself
        memories = 2 if bigram_factor else 1
        self.num_hidden_layers = n_layer + memories
        windows = [*plain.windows, *[plain.short_window] * memories]
        self.layer_types = [
            "full_attention" if window == max_position_embeddings else "sliding_attention" for window in windows
        ]
        self.use_cache = True
        for name, value in {**Architecture.constants(), "short_window": plain.short_window}.items():
            if (given := kwargs.setdefault(name, value)) != value:
                raise ValueError(f"{name} is {given}; this model's code computes with {value}")
        for derived in DERIVED:
            kwargs.pop(derived, None)  # a saved config names them too
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    def shape(self) -> GPTConfig:
        """These dimensions in our form."""
        shape: Any = Shape(
            sequence_len=self.max_position_embeddings, vocab_size=self.vocab_size, n_layer=self.n_layer,
            n_head=self.num_attention_heads, n_kv_head=self.num_key_value_heads, n_embd=self.hidden_size,
            window_pattern=self.window_pattern, bigram_factor=self.bigram_factor, architecture=self.architecture,
        )  # fmt: skip
        shape.padded_vocab_size, shape.num_bigram_rows = self.padded_vocab_size, self.bigram_rows
        return shape

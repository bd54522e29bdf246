"""Dimensions of a nanochat-lit model, for transformers."""

from typing import Any

from transformers import PreTrainedConfig

DERIVED = ("intermediate_size", "num_hidden_layers", "head_dim", "sliding_window", "layer_types", "use_cache")


class NanochatLitConfig(PreTrainedConfig):
    """Dimensions of a nanochat-lit model.

    `num_hidden_layers` is one more than `n_layer`: the last key/value cache belongs to no block, it remembers which token
    came before (see NanochatLitPreviousToken). With a bigram embedding there is one more, for the token before that.

    Args:
        vocab_size: Number of token ids.
        padded_vocab_size: Rows of the embedding tables.
        hidden_size: Width of the residual stream.
        n_layer: Transformer blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        max_position_embeddings: Context in tokens.
        window_pattern: Attention windows, letters S and L tiled over the blocks; the last is always L.
        bigram_factor: Entries of the hashed bigram embedding, as a multiple of the vocabulary; 0 disables it.
        bigram_rows: Rows of that table; None: as `bigram_factor` says. Tokens that are added later leave the table as it is.
        short_window: Tokens before itself that a token sees in a block S.
        rope_theta: Base of the rotary positions.
        qk_scale: Factor on queries and keys after their norm.
        value_gate_scale: What the gate of the value embeddings reaches up to.
        final_logit_softcapping: What logits are squeezed into.
        kwargs: Of PreTrainedConfig.
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
        short_window: int = 512,
        rope_theta: float = 100_000.0,
        qk_scale: float = 1.2,
        value_gate_scale: float = 3.0,
        final_logit_softcapping: float = 15.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.padded_vocab_size = vocab_size if padded_vocab_size is None else padded_vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = 4 * hidden_size
        self.n_layer = n_layer
        self.bigram_factor = bigram_factor
        self.bigram_rows = bigram_factor * vocab_size if bigram_rows is None else bigram_rows
        memories = 2 if bigram_factor else 1
        self.num_hidden_layers = n_layer + memories
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.window_pattern = window_pattern
        self.short_window = short_window
        self.sliding_window = short_window + 1  # transformers counts the token itself
        letters = [window_pattern[layer % len(window_pattern)].upper() for layer in range(n_layer - 1)]
        letters += ["L", *["S"] * memories]
        self.layer_types = ["sliding_attention" if letter == "S" else "full_attention" for letter in letters]
        self.rope_theta = rope_theta
        self.qk_scale = qk_scale
        self.value_gate_scale = value_gate_scale
        self.final_logit_softcapping = final_logit_softcapping
        self.use_cache = True
        for derived in DERIVED:
            kwargs.pop(derived, None)  # a saved config names them too
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    def has_value_embedding(self, layer: int) -> bool:
        """Whether this block adds a value embedding: every second one, the last always."""
        return layer % 2 == (self.n_layer - 1) % 2

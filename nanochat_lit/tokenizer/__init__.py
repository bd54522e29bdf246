"""Tokenizers, and rendering of conversations to token ids with a loss mask."""

from nanochat_lit.tokenizer.chat import (
    Conversation,
    parse_completion,
    render_conversation,
    render_for_completion,
    validate_conversation,
)
from nanochat_lit.tokenizer.special_tokens import SPECIAL_TOKENS
from nanochat_lit.tokenizer.tokenizer import StreamDecoder, Tokenizer
from nanochat_lit.tokenizer.training import auto_vocab_size

__all__ = [
    "SPECIAL_TOKENS",
    "Conversation",
    "StreamDecoder",
    "Tokenizer",
    "auto_vocab_size",
    "parse_completion",
    "render_conversation",
    "render_for_completion",
    "validate_conversation",
]

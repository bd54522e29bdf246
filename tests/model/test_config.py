"""Shapes from the depth dial, and impossible shapes."""

import pytest

from nanochat_lit import GPTConfig
from nanochat_lit.common.errors import UserError


def test_the_default_is_depth_12():
    assert GPTConfig() == GPTConfig.from_depth(12)


@pytest.mark.parametrize(
    ("depth", "head_dim", "n_embd", "n_head"),
    [(4, 64, 256, 4), (4, 128, 256, 2), (5, 128, 384, 3), (26, 128, 1664, 13)],
)
def test_width_is_rounded_up_to_whole_heads(depth, head_dim, n_embd, n_head):
    config = GPTConfig.from_depth(depth, head_dim=head_dim)
    assert (config.n_embd, config.n_head, config.head_dim) == (n_embd, n_head, head_dim)


def test_windows_tile_and_end_long():
    config = GPTConfig.from_depth(6, sequence_len=2048, window_pattern="SSSL")
    assert config.windows == (512, 512, 512, 2048, 512, 2048)
    assert GPTConfig.from_depth(2, sequence_len=300, window_pattern="s").windows == (128, 300)


@pytest.mark.parametrize("vocab_size", [1, 64, 65, 32768])
def test_padded_vocabulary(vocab_size):
    padded = GPTConfig(vocab_size=vocab_size).padded_vocab_size
    assert padded % 64 == 0
    assert 0 <= padded - vocab_size < 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 100, "n_head": 6}, "n_embd 100 is not divisible by n_head 6; use n_embd 102"),
        ({"n_embd": 30, "n_head": 6, "n_kv_head": 6}, "head dimension n_embd/n_head = 5 is odd"),
        ({"n_head": 6, "n_kv_head": 4}, "n_kv_head 4 does not divide n_head 6"),
        ({"window_pattern": "SSX"}, "window_pattern 'SSX'"),
        ({"window_pattern": ""}, "window_pattern ''"),
        ({"bigram_factor": -1}, "bigram_factor is -1"),
        ({"bigram_factor": 1.5}, "bigram_factor is 1.5"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"sequence_len": 2.5}, "sequence_len is 2.5"),
        ({"n_embd": 16, "n_head": 2, "n_kv_head": 2}, "n_embd 16 is below 24"),
    ],
)
def test_impossible_dimensions_are_explained(fields, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        GPTConfig(**fields)


def test_foreign_json_is_refused():
    with pytest.raises(UserError, match=r"unknown fields \['hidden_size'\]"):
        GPTConfig.from_dict({**GPTConfig().to_dict(), "hidden_size": 3})
    with pytest.raises(UserError, match=r"missing fields \['n_head'\]"):
        GPTConfig.from_dict({k: v for k, v in GPTConfig().to_dict().items() if k != "n_head"})

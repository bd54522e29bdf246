"""Small Hugging Face folders, made here: nothing is downloaded."""

from pathlib import Path

import pytest
import torch

END = "<|endoftext|>"


def _save_tokenizer(folder: Path, **options: object) -> int:
    """A byte-level BPE tokenizer of a few merges; its vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    pieces = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    whole.pre_tokenizer, whole.decoder = pieces, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=pieces.alphabet(), show_progress=False
    )
    whole.train_from_iterator(
        ["the cat sat on the small mat under a tree, then the dog ran", "A A B B C C D D"] * 5, trainer
    )
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, **{"eos_token": END, **options})
    wrapped.save_pretrained(folder)
    return len(wrapped)


def _save_folder(folder: Path, kind: str) -> Path:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    vocab_size = _save_tokenizer(folder, **({"bos_token": END} if kind == "gpt2" else {}))
    shape = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.15}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=256, n_embd=32, n_layer=2, n_head=2, **shape)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=256, **shape)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_folder():
    """Writes a folder of a kind, "gpt2" or "llama", with random weights; a context of 256 tokens."""
    return _save_folder

"""Hashed bigram embeddings: the formula by hand, the caches, and that nothing changes where they are off."""

import json
from itertools import pairwise

import pytest
import torch

from nanochat_lit import GPT, GPTConfig, MuonAdamW, param_groups
from nanochat_lit.model import KVCache
from nanochat_lit.model.accounting import count_parameters, flops_per_token
from nanochat_lit.model.attention import WholeSequences
from nanochat_lit.model.export import load_model, save_model
from nanochat_lit.model.memory import training_memory
from nanochat_lit.model.transformer import bigram_ids, previous_tokens

FACTOR = 3


def ids(model: GPT, rows: int = 2, length: int = 50) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def row_by_hand(previous: int, token: int, num_rows: int) -> int:
    return ((36313 * token) ^ (27191 * previous)) % num_rows


def test_rows_are_those_of_the_formula():
    """Also of ids whose products do not fit 32 bits, and in chunks of which each knows the last token of the one before."""
    tokens = torch.tensor([[5, 0, 131071, 131071, 7, 99999], [0, 3, 3, 131000, 1, 2]], dtype=torch.int32)
    num_rows = 5 * 131072 + 1
    expected = [
        [row_by_hand(a, b, num_rows) for a, b in pairwise([0, *text])]  # the first has the token 0 before it
        for text in tokens.tolist()
    ]

    def rows(tokens, context):
        return bigram_ids(tokens, previous_tokens(tokens, context), num_rows)

    assert rows(tokens, WholeSequences({})).tolist() == expected
    cache = KVCache(GPTConfig(n_layer=1, n_embd=64, n_head=2, n_kv_head=2), 2, 8)
    chunks = [rows(tokens[:, a:b], cache) for a, b in pairwise((0, 1, 2, 5, 6))]
    assert torch.cat(chunks, dim=1).tolist() == expected
    cache.reset()
    assert rows(tokens[:, :1], cache).tolist() == [row[:1] for row in expected]


@torch.no_grad()
def test_the_row_is_added_before_the_first_norm(random_model):
    """A model without the table, whose token embedding holds the sum for every position, says the same."""
    model = random_model(bigram_factor=FACTOR)
    inputs = ids(model, length=40)
    places = torch.arange(80).view(2, 40)
    naive = random_model(vocab_size=320)
    naive.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name != "bigram.weight"})
    table = model.transformer["wte"].weight.clone()
    naive.transformer["wte"].weight[:80] = torch.stack(
        [
            table[token] + model.bigram.weight[row_by_hand(previous, token, FACTOR * 320)]
            for text in inputs.tolist()
            for previous, token in pairwise([0, *text])
        ]
    )
    for values in naive.value_embeds.values():
        values.weight[:80] = values.weight[inputs.flatten()].clone()
    torch.testing.assert_close(model(inputs), naive(places), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_new_table_changes_no_bit():
    fields = {"sequence_len": 64, "vocab_size": 100, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 32}
    plain, added = GPT(GPTConfig(**fields)), GPT(GPTConfig(**fields, bigram_factor=FACTOR))
    for model in (plain, added):
        model.init_weights(torch.Generator().manual_seed(0))
    assert added.state_dict().keys() - plain.state_dict().keys() == {"bigram.weight"}
    assert added.bigram.weight.shape == (300, 32)  # of the vocabulary itself, not of its padded rows
    assert not added.bigram.weight.any()
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (model.set_compute_dtype(dtype) for model in (plain, added))
        assert torch.equal(one(ids(one)), other(ids(one)))
    assert added.bigram.weight.dtype == torch.bfloat16
    assert added.set_compute_dtype(torch.float16).bigram.weight.dtype == torch.float32


@torch.no_grad()
def test_kept_rows_keep_their_tokens(random_model):
    model = random_model(bigram_factor=FACTOR)
    inputs, cache = ids(model, rows=3), KVCache(model.config, 3, 64)
    model(inputs[:, :30], kv_cache=cache)
    rows = torch.tensor([2, 0])
    cache.keep_rows(rows)
    torch.testing.assert_close(model(inputs[rows, 30:], kv_cache=cache), model(inputs)[rows, 30:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_cache_keeps_no_tensor_of_its_caller(random_model):
    model = random_model(bigram_factor=FACTOR)
    inputs, cache = ids(model, rows=1), KVCache(model.config, 1, 64)
    buffer = inputs[:, :1].clone()
    for place in range(10):
        buffer.copy_(inputs[:, place : place + 1])
        logits = model(buffer, kv_cache=cache)
    torch.testing.assert_close(logits, model(inputs[:, :10])[:, -1:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_saved_and_loaded(random_model, tmp_path):
    model = random_model(bigram_factor=FACTOR)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, compute_dtype="float32")
    assert loaded.config == model.config
    assert torch.equal(loaded(ids(model)), model(ids(model)))


def test_without_a_table_the_files_are_as_before(random_model, tmp_path):
    model = random_model()
    save_model(model, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert "bigram_factor" not in fields
    assert len(fields) == 7
    assert GPTConfig.from_dict(fields) == model.config
    assert not any("bigram" in name for name in model.state_dict())


def test_a_step_moves_the_rows_of_its_pairs_alone(random_model):
    model = random_model(bigram_factor=FACTOR)
    with torch.no_grad():
        model.bigram.weight.zero_()
    groups = param_groups(model, embedding_lr=0.3)
    (group,) = [group for group in groups if group["name"] == "bigram"]
    assert group["lr"] == pytest.approx(0.15 * (32 / 768) ** -0.5)
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.995), 0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert "bigram" not in [group["name"] for group in param_groups(random_model())]
    inputs = ids(model)
    model(inputs[:, :-1], inputs[:, 1:]).backward()
    MuonAdamW(groups).step()
    moved = model.bigram.weight.abs().sum(dim=1).nonzero().flatten().tolist()
    pairs = {row_by_hand(a, b, FACTOR * 320) for text in inputs[:, :-1].tolist() for a, b in pairwise([0, *text])}
    assert moved == sorted(pairs)


def test_a_table_costs_memory_and_no_arithmetic():
    plain, added = (GPTConfig.from_depth(4, vocab_size=1000, bigram_factor=factor) for factor in (0, FACTOR))
    one, other = count_parameters(plain), count_parameters(added)
    assert (one.bigram, other.bigram) == (0, FACTOR * 1000 * 256)
    assert other.total == one.total + other.bigram
    assert other.scaling == one.scaling
    assert flops_per_token(added) == flops_per_token(plain)
    before, after = (training_memory(config, micro_batch_size=1) for config in (plain, added))
    assert after.weights - before.weights == after.gradients - before.gradients == 2 * other.bigram  # bfloat16
    assert after.optimizer_state - before.optimizer_state == 4 * other.bigram

"""The start from counts predicts what counting predicts: compared with entropies of a text whose rule is known."""

import numpy as np
import pytest
import torch

from nanochat_lit import GPT, GPTConfig
from nanochat_lit.model.architecture import build_model
from nanochat_lit.model.counted_start import start_from_counts

VOCABULARY = 40


def text(length: int, seed: int) -> torch.Tensor:
    """Tokens of which each follows from the two before it: 5 of 40 are likely."""
    rule = np.random.default_rng(0).dirichlet(np.full(VOCABULARY, 0.1), (VOCABULARY, VOCABULARY))
    draws, ids = np.random.default_rng(seed).random(length), [0, 1]
    for draw in draws:
        ids.append(min(int(rule[ids[-2], ids[-1]].cumsum().searchsorted(draw)), VOCABULARY - 1))
    return torch.tensor(ids)


@pytest.fixture(scope="module")
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    return text(200_000, seed=1), text(20_000, seed=2)


def counted_loss(train: torch.Tensor, held_out: torch.Tensor, order: int) -> float:
    """Nats per token of a table of counts, with a count of 0.1 added: the tokens alone (1), pairs (2), triples (3)."""
    table = np.full((VOCABULARY,) * order, 0.1)
    rows = train.numpy()
    np.add.at(table, tuple(rows[at : len(rows) - order + 1 + at] for at in range(order)), 1)
    table /= table.sum(-1, keepdims=True)
    rows = held_out.numpy()
    return float(-np.log(table[tuple(rows[at : len(rows) - order + 1 + at] for at in range(order))]).mean())


def started(bigram_factor: int, tokens: torch.Tensor, vocab_size: int = VOCABULARY) -> GPT:
    torch.manual_seed(0)
    model = GPT(
        GPTConfig.from_depth(2, vocab_size=vocab_size, sequence_len=64, head_dim=32, bigram_factor=bigram_factor)
    )
    model.init_weights()
    start_from_counts(model, tokens)
    return model


@torch.inference_mode()
def loss_of(model: GPT, tokens: torch.Tensor) -> float:
    rows = tokens[: len(tokens) // 65 * 65].view(-1, 65)
    return float(model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()))


def test_without_bigram_embedding_it_predicts_as_the_pairs_do(texts):
    train, held_out = texts
    model = started(0, train)
    alone, pairs = (counted_loss(train, held_out, order) for order in (1, 2))
    assert loss_of(model, held_out) < pairs + 0.25 * (alone - pairs)


def test_the_bigram_embedding_adds_what_the_triples_know(texts):
    """One step of Newton's method in 128 channels: a large share of the way, where every pair has its own row."""
    train, held_out = texts
    pairs, triples = (counted_loss(train, held_out, order) for order in (2, 3))
    assert loss_of(started(200, train), held_out) < pairs - 0.4 * (pairs - triples)


@torch.inference_mode()
def test_tokens_that_never_occur_stay_finite_and_unlikely(texts):
    """Also those that only pad the unembedding."""
    model = started(5, texts[0], vocab_size=VOCABULARY + 30)
    weights = [model.transformer["wte"].weight, model.lm_head.weight, model.bigram.weight]
    assert all(bool(torch.isfinite(weight).all()) for weight in weights)
    probabilities = model(texts[1][None, :64]).softmax(-1)
    assert float(probabilities[0, :, VOCABULARY:].sum(-1).mean()) < 0.01


def test_the_blocks_and_the_random_state_of_their_weights_stay(texts: tuple[torch.Tensor, torch.Tensor]):
    torch.manual_seed(0)
    config = started(5, texts[0]).config
    torch.manual_seed(0)
    plain = GPT(config)
    plain.init_weights()
    ours = started(5, texts[0]).state_dict()
    changed = {name for name, weight in plain.state_dict().items() if not torch.equal(weight, ours[name])}
    assert changed == {"transformer.wte.weight", "lm_head.weight", "bigram.weight"}


@pytest.mark.parametrize("architecture", ["qwen3", "nanochat2025", "nanochat2026"])
def test_every_architecture_starts(texts: tuple[torch.Tensor, torch.Tensor], architecture: str):
    train, held_out = texts
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "sequence_len": 64, "head_dim": 32, "architecture": architecture}
    model = build_model(GPTConfig.from_depth(2, **shape, window_pattern="L"))
    model.init_weights()
    start_from_counts(model, train)
    assert loss_of(model, held_out) < counted_loss(train, held_out, 1)


@pytest.mark.parametrize("ids", [[0, 1, 2], [3, 3, 3], [5, 6, 5, 6, 5]])
def test_a_text_of_few_tokens(ids: list[int]):
    model = started(5, torch.tensor(ids))
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())

"""Scores of given rows: what a cache computes once is what whole rows give, in any grouping and order."""

import numpy as np
import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import padded_length
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.scoring import BUCKET, MIN_SHARED, Example, GPTScorer, common_prefix, shared_length


def examples(count=12, seed=0, vocab_size=320):
    """Two to five rows each with a shared beginning of 1 to 70 tokens and ends of 1 to 9."""
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return rng.integers(1, vocab_size, rng.integers(low, high)).astype(np.int32)

    made = []
    for _ in range(count):
        beginning = np.concatenate([[0], tokens(1, 70)]).astype(np.int32)
        rows = [np.concatenate([beginning, tokens(1, 10)]) for _ in range(rng.integers(1, 5))]
        made.append(Example(rows=rows, starts=[len(beginning)] * len(rows)))
    return made


@torch.no_grad()
def plain(model, example):
    scores = []
    for row, start in zip(example.rows, example.starts, strict=True):
        ids = torch.from_numpy(row).long()
        logits = model(ids[None])[0, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[start:])
        scores.append((loss.item(), bool((logits.argmax(-1) == ids[start:]).all())))
    return scores


def as_pairs(scores):
    return [[(score.mean_loss, score.is_greedy) for score in row_scores] for row_scores in scores]


@pytest.mark.parametrize("tokens_per_pass", [1, 200, 100_000])
@pytest.mark.parametrize("fields", [{}, {"n_kv_head": 1, "window_pattern": "SSL"}, {"bigram_factor": 3}])
def test_scores_are_those_of_whole_rows(tokens_per_pass, fields, random_model):
    model, asked = random_model(sequence_len=128, **fields), examples()
    found = as_pairs(GPTScorer(model, tokens_per_pass).score(asked))
    for example, pairs in zip(asked, found, strict=True):
        wanted = plain(model, example)
        np.testing.assert_allclose([loss for loss, _ in pairs], [loss for loss, _ in wanted], rtol=2e-5)
        assert [greedy for _, greedy in pairs] == [greedy for _, greedy in wanted]


def test_the_order_does_not_matter(random_model):
    scorer, asked = GPTScorer(random_model(sequence_len=128)), examples()
    forward, backward = scorer.score(asked), scorer.score(asked[::-1])[::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_allclose([s.mean_loss for s in one], [s.mean_loss for s in other], rtol=2e-5)


def test_greedy_continuations_are_known_as_such(random_model, tokenizer):
    model = random_model()
    prompt = [0, 30, 40, 50]
    (completion,) = Engine(model, tokenizer).generate(prompt, max_new_tokens=6)
    assert completion
    row = np.array([*prompt, *completion], dtype=np.int32)
    wrong = row.copy()
    wrong[-1] = (wrong[-1] + 1) % 320
    asked = [Example(rows=[row], starts=[4]), Example(rows=[wrong], starts=[4])]
    assert [scores[0].is_greedy for scores in GPTScorer(model).score(asked)] == [True, False]


def test_what_rows_share_is_computed_once(random_model, monkeypatch):
    model = random_model(sequence_len=256)
    rng = np.random.default_rng(0)
    beginning = rng.integers(1, 320, 160).astype(np.int32)
    rows = [np.concatenate([beginning, rng.integers(1, 320, 5).astype(np.int32)]) for _ in range(4)]
    seen = []
    features = model.features

    def counted(inputs, kv_cache=None):
        seen.append(inputs.numel())
        return features(inputs, kv_cache)

    monkeypatch.setattr(model, "features", counted)
    GPTScorer(model).score([Example(rows=rows, starts=[160] * 4)] * 3)
    assert seen[0] <= 3 * 160
    assert sum(seen) <= 3 * (160 + 4 * padded_length(BUCKET + 5, 256))  # whole rows would be 3 * 4 * 164


def test_no_pass_is_larger_than_allowed(random_model, monkeypatch):
    model, sizes = random_model(sequence_len=128), []
    features = model.features

    def counted(inputs, kv_cache=None):
        sizes.append(inputs.numel())
        return features(inputs, kv_cache)

    monkeypatch.setattr(model, "features", counted)
    GPTScorer(model, tokens_per_pass=800).score(examples(60))
    assert max(sizes) <= 800
    assert len(sizes) < 60


def test_logits_are_made_for_scored_tokens_alone(random_model, monkeypatch):
    model, made = random_model(sequence_len=256), []
    linear = torch.nn.functional.linear

    def counted(inputs, weight, *rest):
        if weight.shape[0] == 320:
            made.append(inputs.shape[0])
        return linear(inputs, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    asked = examples()
    GPTScorer(model).score(asked)
    assert sum(made) == sum(len(row) - start for e in asked for row, start in zip(e.rows, e.starts, strict=True))


def test_shared_lengths():
    def example(prefix, ends, starts=None):
        rows = [np.arange(prefix + end, dtype=np.int32) for end in ends]
        for number, row in enumerate(rows):
            row[prefix:] += 1000 * (number + 1)
        return Example(rows=rows, starts=starts or [prefix] * len(ends))

    assert shared_length(example(100, [3, 4])) == 96
    assert shared_length(example(97, [3, 4])) == 96
    assert shared_length(example(96, [3, 4])) == 88  # one token must stay to predict the first scored one
    assert shared_length(example(MIN_SHARED, [3, 4])) == 0
    assert shared_length(example(100, [3])) == 0
    assert shared_length(example(100, [3, 4], starts=[100, 40])) == 32
    assert common_prefix([np.array([1, 2, 3]), np.array([1, 2])]) == 2


def test_damaged_weights_are_named(random_model):
    model = random_model(sequence_len=128)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        GPTScorer(model).score(examples(2))

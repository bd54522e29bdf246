"""Evaluation meets few shapes and compiles nothing, whatever the lengths of its texts."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from nanochat_lit.common.hardware import padded_length
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.answerer import EngineAnswerer
from nanochat_lit.evaluation.bpb import evaluate_documents
from nanochat_lit.evaluation.scoring import Example, GPTScorer
from nanochat_lit.model import attention

CONTEXT = 256
LENGTHS = range(60, 60 + 40 * 4, 4)
"""Forty of them, on both sides of the window of 128."""


@pytest.fixture
def model(random_model, monkeypatch):
    """A model in training on what it takes for an H100: FlexAttention for windows, compiled for the training length."""
    model = random_model(sequence_len=CONTEXT, n_embd=64, window_pattern="SL")
    monkeypatch.setattr(attention, "choose_attention", lambda *_, is_windowed, **__: "flex" if is_windowed else "sdpa")
    model.compile_for_training()
    model._features = torch.compile(model.features, dynamic=False, backend="eager")
    return model.eval()


@pytest.fixture
def shapes(model, monkeypatch):
    """The lengths that reach the model."""
    seen, features = set(), model.features

    def noted(inputs, kv_cache=None):
        seen.add(inputs.shape[1])
        return features(inputs, kv_cache)

    monkeypatch.setattr(model, "features", noted)
    return seen


def score_core(model, tokenizer):
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 320, length).astype(np.int32) for length in LENGTHS]
    shared = [np.concatenate((row[:40], rng.integers(1, 320, 9).astype(np.int32))) for row in rows]
    examples = [Example(rows=[row], starts=[len(row) - 3]) for row in rows]
    examples += [Example(rows=[row, own], starts=[40, 40]) for row, own in zip(rows, shared, strict=True)]
    GPTScorer(model, 1000).score(examples)


def score_texts(model, tokenizer):
    evaluate_documents(model, tokenizer, ["z" * length for length in LENGTHS], CONTEXT, micro_batch_size=2)


def score_questions(model, tokenizer):
    answerer = EngineAnswerer(Engine(model, tokenizer))
    for length in LENGTHS:
        answerer.next_logits([[5] * length, [6] * 10])


@torch.no_grad()
def score_rollouts(model, tokenizer):
    model.logprobs(torch.ones(2, 200, dtype=torch.int64), torch.ones(2, 200, dtype=torch.int64))


@pytest.mark.parametrize("score", [score_core, score_texts, score_questions, score_rollouts])
def test_forty_lengths_are_few_shapes_and_compile_nothing(score, model, shapes, tokenizer):
    counters.clear()
    score(model, tokenizer)
    allowed = {padded_length(length, CONTEXT) for length in range(1, CONTEXT + 1)} | {200}
    assert shapes <= allowed
    assert len(shapes) <= 12
    assert counters["frames"]["total"] == 0

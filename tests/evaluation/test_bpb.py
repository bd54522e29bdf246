import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat_lit.common.errors import UserError
from nanochat_lit.evaluation.bpb import BitsPerByte, evaluate_documents
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer

MakeModel = Callable[..., GPT]
TEXTS = ["the cat sat on the mat. " * 20, "x", "", "naïve ▁ 日本語 🙂 " * 9, "12 + 34 = 46", "hello world " * 30]


def naive_bpb(model: GPT, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Piece by piece, token by token, from the logits, divided by the bytes of the texts themselves."""
    nats = 0.0
    step = model.config.sequence_len
    for text in texts:
        token_ids = tokenizer.encode(text)
        for start in range(0, len(token_ids), step):
            piece = token_ids[start : start + step]
            logits = model(torch.tensor([[tokenizer.bos_id, *piece[:-1]]]))[0].double()
            nats -= sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits, piece, strict=True))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_documents_equal_a_naive_loop(random_model: MakeModel, tokenizer: Tokenizer, micro_batch_size: int) -> None:
    model = random_model(sequence_len=32)
    result = evaluate_documents(model, tokenizer, TEXTS, 32, micro_batch_size=micro_batch_size)
    with torch.no_grad():
        assert result["bpb"] == pytest.approx(naive_bpb(model, tokenizer, TEXTS), rel=1e-5)
    assert result["documents"] == len(TEXTS)
    assert result["tokens"] == sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert result["bytes"] == sum(len(text.encode()) for text in TEXTS)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=80), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_byte_counts_once(random_model: MakeModel, tokenizer: Tokenizer, texts: list[str]) -> None:
    texts = [*texts, "a"]
    result = evaluate_documents(random_model(sequence_len=16), tokenizer, texts, 16, micro_batch_size=3)
    assert result["bytes"] == sum(len(text.encode()) for text in texts)


def test_max_docs_reads_no_further(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    texts = iter(TEXTS)
    result = evaluate_documents(random_model(), tokenizer, texts, 64, max_docs=2)
    assert result["bytes"] == len((TEXTS[0] + TEXTS[1]).encode())
    assert next(texts) == TEXTS[2]


def test_no_text_is_an_error(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no text in 2 documents"):
        evaluate_documents(random_model(), tokenizer, ["", ""], 64)
    with pytest.raises(UserError, match="max_docs is 0"):
        evaluate_documents(random_model(), tokenizer, TEXTS, 64, max_docs=0)


def test_metric_ignores_padding_and_control_tokens() -> None:
    token_bytes = torch.tensor([0, 1, 3], dtype=torch.int32)
    targets = torch.tensor([[1, 2, 0], [-1, 2, -1]])
    losses = torch.tensor([[1.0, 2.0, 100.0], [float("nan"), 4.0, 50.0]])
    metric = BitsPerByte()
    metric.update(losses, targets, token_bytes)
    assert float(metric.compute()) == pytest.approx((1 + 2 + 4) / math.log(2) / (1 + 3 + 3))
    halves = BitsPerByte()
    for row in range(2):
        halves.update(losses[row], targets[row], token_bytes)
    assert float(halves.compute()) == float(metric.compute())
    metric.reset()
    metric.update(losses[:0], targets[:0], token_bytes)
    assert math.isnan(float(metric.compute()))


def test_metric_keeps_counting_small_terms() -> None:
    metric, token_bytes = BitsPerByte(), torch.tensor([1])
    metric.update(torch.tensor([2.0**26]), torch.tensor([0]), token_bytes)
    for _ in range(100):
        metric.update(torch.tensor([1.0]), torch.tensor([0]), token_bytes)
    assert float(metric.compute()) == pytest.approx(
        (2.0**26 + 100) / math.log(2) / 101, rel=1e-12
    )  # float32 would have stayed at 2**26


def test_a_loss_that_is_not_finite_shows() -> None:
    for bad in (float("nan"), float("inf")):
        metric = BitsPerByte()
        metric.update(torch.tensor([1.0, bad]), torch.tensor([0, 0]), torch.tensor([1]))
        assert math.isnan(float(metric.compute()))

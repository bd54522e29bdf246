"""The held-out evaluation runs items through the engine and hands the judge what it needs."""

from collections.abc import Callable
from typing import Any

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation import tiny_world
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer


def item(question: str, category: str, says: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "category": category, "expect": {"says": says}}


def test_counts_by_category(
    random_model: Callable[..., GPT], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(random_model(), tokenizer)
    special = tokenizer.special_ids
    call = [special["<|python_start|>"], *tokenizer.encode("1+1"), special["<|python_end|>"]]
    result = [special["<|output_start|>"], *tokenizer.encode("2"), special["<|output_end|>"]]
    answers = [tokenizer.encode("yes"), [*tokenizer.encode("so "), *call, *result, *tokenizer.encode("2")], []]
    monkeypatch.setattr(engine, "generate_batch", lambda prompts, **_: answers[: len(prompts)])
    judged: list[tuple[str, list[str]]] = []

    def judge(item: dict[str, Any], completion: str, tool_calls: list[str]) -> bool:
        judged.append((completion, tool_calls))
        return completion == item["expect"]["says"]

    monkeypatch.setattr(tiny_world, "judge", judge)
    items = [
        item("a", "facts", "yes"),
        item("b", "sums", "so 2"),
        item("c", "facts", "no"),
        item("d " * 99, "sums", ""),
    ]
    report = tiny_world.examine(engine, items)
    assert judged == [("yes", []), ("so 2", ["1+1"]), ("", [])]
    assert report["accuracy"] == 0.5
    assert report["categories"]["facts"] == {"accuracy": 0.5, "correct": 1, "count": 2}
    assert report["categories"]["sums"] == {"accuracy": 0.5, "correct": 1, "count": 2}
    assert [failure["question"].strip()[:7] for failure in report["failures"]] == ["user: c", "user: d"]
    assert "does not fit" in report["failures"][1]["answer"]


def test_no_items(random_model: Callable[..., GPT], tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tokenizer)
    with pytest.raises(UserError, match="no items"):
        tiny_world.examine(engine, [])
    with pytest.raises(UserError, match="item 0"):
        tiny_world.examine(engine, [{"messages": []}])

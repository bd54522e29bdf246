"""Held-out evaluation of the tiny world with greedy answers."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from nanochat_lit.common.distributed import joined_shares, rank, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.answerer import completion_of
from nanochat_lit.evaluation.samples import readable
from nanochat_lit.tasks.tiny_world import judge
from nanochat_lit.tokenizer import parse_completion, render_for_completion


def examine(engine: Engine, items: Sequence[dict[str, Any]], max_new_tokens: int = 128) -> dict[str, Any]:
    """Evaluate the answers to items of `tiny_world.held_out_items`, which have messages, category and expect.

    The ranks of a process group share the items. One whose conversation does not fit the model's context counts as
    failed, with a note in its transcript.

    Returns:
        accuracy (over all items), categories (name -> accuracy, correct, count), and failures: a list of category,
            question, answer and expect of every wrong item.

    Raises:
        UserError: If there are no items or an item is malformed.
    """
    if not items:
        raise UserError("the held-out evaluation has no items; give a file or a number per category of at least 1")
    completions = _answer(engine, items, max_new_tokens)
    correct: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    failures: list[dict[str, Any]] = []
    for item, token_ids in zip(items, completions, strict=True):
        is_right = token_ids is not None and judge(item, *completion_of(engine.tokenizer, token_ids))
        count[item["category"]] += 1
        correct[item["category"]] += is_right
        if not is_right:
            answer = "(the conversation does not fit the model's context)"
            if token_ids is not None:
                answer = readable(parse_completion(engine.tokenizer, token_ids))
            question = "\n".join(f"{one['role']}: {readable(one['content'])}" for one in item["messages"])
            failure = {"category": item["category"], "question": question, "answer": answer, "expect": item["expect"]}
            failures.append(failure)
    categories = {
        name: {"accuracy": correct[name] / count[name], "correct": correct[name], "count": count[name]}
        for name in sorted(count)
    }
    return {"accuracy": sum(correct.values()) / len(items), "categories": categories, "failures": failures}


def _answer(engine: Engine, items: Sequence[dict[str, Any]], max_new_tokens: int) -> list[list[int] | None]:
    """Return completions in the order of the items; None if the prompt is longer than the context."""
    prompts: list[list[int]] = []
    for index, item in enumerate(items):
        if not {"messages", "category", "expect"} <= set(item):
            raise UserError(f"item {index} of the held-out evaluation lacks one of messages, category, expect")
        prompts.append(render_for_completion(engine.tokenizer, {"messages": item["messages"]}))
    context = engine.model.config.sequence_len
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= context]
    answers: list[list[int] | None] = [None] * len(items)
    mine = fitting[rank() :: world_size()]
    completions = joined_shares(
        engine.generate_batch([prompts[index] for index in mine], max_new_tokens=max_new_tokens)
    )
    for index, completion in zip(fitting, completions, strict=True):
        answers[index] = completion
    return answers

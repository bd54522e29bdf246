"""Completions of a few prompts, for qualitative inspection."""

from collections.abc import Sequence
from typing import Any

from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.huggingface import HuggingFaceModel
from nanochat_lit.tokenizer import parse_completion, render_for_completion

BASE_PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "If yesterday was Friday, then tomorrow will be",
    "Once upon a time there was",
    "The planets of the solar system are:",
)
"""Prompts for a base model to continue."""

CHAT_PROMPTS = ("Hello!", "Who are you?", "What is 127 plus 358?", "What is the capital of France?")
"""Messages for a chat model to answer."""


def complete_texts(engine: Engine | HuggingFaceModel, prompts: Sequence[str], **sampling: Any) -> list[str]:
    """Return a base model's continuations of texts, 32 tokens by default; `sampling` are fields of `SamplingParams`."""
    token_ids = [engine.tokenizer.encode(prompt, prepend_bos=True) for prompt in prompts]
    completions = engine.generate_batch(token_ids, **{"max_new_tokens": 32, **sampling})
    return [engine.tokenizer.decode(completion) for completion in completions]


def answer_messages(engine: Engine | HuggingFaceModel, prompts: Sequence[str], **sampling: Any) -> list[str]:
    """Return a chat model's answers to user messages; calculator calls are rendered as [expression = result]."""
    settings = {"max_new_tokens": 128, **sampling}
    if isinstance(engine, HuggingFaceModel):
        token_ids = [engine.tokenizer.render_question(prompt) for prompt in prompts]
        completions = engine.generate_batch(token_ids, **settings)
        return [engine.tokenizer.decode(completion) for completion in completions]
    conversations = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    token_ids = [render_for_completion(engine.tokenizer, conversation) for conversation in conversations]
    completions = engine.generate_batch(token_ids, **settings)
    return [readable(parse_completion(engine.tokenizer, completion)) for completion in completions]


def readable(parts: str | Sequence[dict[str, str]]) -> str:
    """Join the parts of a message's content to one text, with calls and results in brackets."""
    if isinstance(parts, str):
        return parts
    text, is_open = "", False
    for part in parts:
        kind = part["type"]
        if is_open:
            text += " = " if kind == "python_output" else "]"
        text += {"text": "", "python": "[", "python_output": "" if is_open else "[= "}[kind] + part["text"]
        text += "]" if kind == "python_output" else ""
        is_open = kind == "python"
    return text + ("]" if is_open else "")

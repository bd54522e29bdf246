"""Who are you? A few questions to which a model should answer with its own name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nanochat_lit.tasks.base import Conversation

QUESTIONS = (
    "Who are you?",
    "What is your name?",
    "Hi! Who am I talking to?",
    "Are you a human?",
    "Introduce yourself, please.",
    "What should I call you?",
    "Which model are you?",
    "Are you ChatGPT?",
    "Tell me about yourself.",
    "What kind of assistant are you?",
)
OTHERS = ("ChatGPT", "GPT-4", "Claude", "Gemini", "Llama", "Mistral", "Qwen", "DeepSeek")


class Identity:
    """Questions about the model itself; conversations to learn its character from come as files (`FileConversations`).

    Args:
        name: What it should call itself.
    """

    def __init__(self, name: str = "nanochat") -> None:
        self.name = name

    def __len__(self) -> int:
        return len(QUESTIONS)

    def __getitem__(self, index: int) -> Conversation:
        answer = f"I am {self.name}, a small language model."
        return {"messages": [{"role": "user", "content": QUESTIONS[index]}, {"role": "assistant", "content": answer}]}

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Whether the answer holds the name, and no other model's that was not asked about."""
        del tool_calls
        question = conversation["messages"][0]["content"]
        has_other = any(_has(completion, other) and not _has(question, other) for other in OTHERS)
        return _has(completion, self.name) and not has_other


def _has(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None

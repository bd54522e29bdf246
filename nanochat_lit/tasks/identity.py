"""Questions about the model's identity, which it should answer with its name."""

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
    """Identity questions for evaluation; use `FileConversations` for training data.

    Args:
        name: Name of the model.
    """

    def __init__(self, name: str = "nanochat") -> None:
        self.name = name

    def __len__(self) -> int:
        return len(QUESTIONS)

    def __getitem__(self, index: int) -> Conversation:
        answer = f"I am {self.name}, a small language model."
        return {"messages": [{"role": "user", "content": QUESTIONS[index]}, {"role": "assistant", "content": answer}]}

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the answer has the name, and no other model's name that the question does not mention."""
        del tool_calls
        question = conversation["messages"][0]["content"]
        has_other = any(_has(completion, other) and not _has(question, other) for other in OTHERS)
        return _has(completion, self.name) and not has_other


def _has(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None

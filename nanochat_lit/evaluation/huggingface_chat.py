"""ChatCORE answers of Hugging Face models, with their chat template or as plain text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.evaluation.answerer import Answering, Completion, last_places, padded
from nanochat_lit.evaluation.huggingface import HuggingFaceModel, HuggingFaceScorer
from nanochat_lit.tasks.base import Conversation

QUESTION, ANSWER = "Question:", "Answer:"
"""Prefixes of the turns of a conversation without a chat template."""


class HuggingFaceAnswerer:
    """Answers with a transformers model, without a calculator.

    Appends the task's instruction on the answer format to the question, because the model was not trained on the task.

    Args:
        causal: Model and tokenizer.
    """

    def __init__(self, causal: HuggingFaceModel) -> None:
        self.causal, self.tokenizer = causal, causal.tokenizer
        self._scorer = HuggingFaceScorer(causal)

    @property
    def sequence_len(self) -> int:
        """Context length minus one token for the answer."""
        return self.causal.sequence_len - 1

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.causal.device

    @property
    def tokens_per_pass(self) -> int:
        """Default of the device."""
        return self._scorer.tokens_per_pass

    def prompt(self, conversation: Conversation) -> list[int]:
        """Render the prompt with the chat template, else as plain-text questions and answers."""
        return self._encode(self._text(_asked(conversation)))

    def letter_ids(self, conversation: Conversation, letter: str) -> list[int]:
        """Return the tokens of this letter after the prompt; they depend on the preceding text."""
        asked = _asked(conversation)
        start, whole = self._text(asked), self._text([*asked, {"role": "assistant", "content": letter}], is_open=False)
        if not whole.startswith(start):  # some templates render past answers differently from new ones
            whole = start + letter
        before, token_ids = self._encode(start), self._encode(whole)
        if token_ids[: len(before)] != before:  # the prompt ends within a token, for example with a space
            return self.tokenizer.encode(letter)
        after = token_ids[len(before) :]
        for count in range(1, len(after) + 1):
            if self.tokenizer.decode(after[:count]).strip() == letter:
                return after[:count]
        return after

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(N, V) float32."""
        rows = torch.arange(len(prompts), device=self.device)
        states = self._scorer.states(
            padded(prompts, self.sequence_len, self.device), None, rows, last_places(prompts, self.device)
        )
        return self._scorer.logits(states)

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Complete the prompts in batches of similar lengths."""
        return self.causal.generate_batch(prompts, max_new_tokens=max_new_tokens)

    def sample(self, prompt: Sequence[int], answering: Answering) -> list[list[int]]:
        """Sample all completions in one batch."""
        return self.causal.generate_batch([prompt] * answering.num_samples, **answering.numbers())

    def read(self, token_ids: Sequence[int]) -> Completion:
        """Return the text, up to the next question if the model continues with one."""
        text = self.tokenizer.decode(token_ids)
        return Completion(text if self.tokenizer.has_template else text.partition(f"\n{QUESTION}")[0], [])

    def _text(self, messages: Sequence[dict[str, str]], is_open: bool = True) -> str:
        if self.tokenizer.has_template:
            return self.tokenizer.conversation_text(messages, is_open)
        said = [_turn(message) for message in messages]
        return "\n".join([*said, ANSWER] if is_open else said)

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer.has_template:
            return self.tokenizer.encode_conversation(text)
        return self.tokenizer.encode(text, prepend_bos=True)


def _asked(conversation: Conversation) -> list[dict[str, str]]:
    """Return the messages before the last answer as text, with the instruction appended."""
    messages = [
        {"role": message["role"], "content": _plain(message["content"])} for message in conversation["messages"]
    ]
    if messages[-1]["role"] == "assistant":
        messages.pop()
    if instruction := conversation.get("instruction"):
        messages[-1]["content"] += f"\n\n{instruction}"
    return messages


def _plain(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _turn(message: dict[str, str]) -> str:
    """Format a message as a paragraph; the space before an answer belongs to its first token."""
    heading = {"user": f"{QUESTION} ", "assistant": f"{ANSWER} "}.get(message["role"], "")
    return heading + message["content"] + ("\n" if message["role"] == "assistant" else "")

"""Hugging Face models in conversation: by the chat template of their tokenizer, or as a text where it has none."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.evaluation.answerer import Answering, last_places, padded
from nanochat_lit.evaluation.answers import Answer
from nanochat_lit.evaluation.huggingface import HuggingFaceModel, HuggingFaceScorer
from nanochat_lit.tasks.base import Conversation

QUESTION, ANSWER = "Question:", "Answer:"
"""What precedes the turns of a conversation without a chat template."""


class HuggingFaceAnswerer:
    """A model of the transformers library, without a calculator.

    It has not seen the tasks in training, so where answers must have a form, the question ends with the task's instruction.

    Args:
        causal: Model and tokenizer.
    """

    def __init__(self, causal: HuggingFaceModel) -> None:
        self.causal, self.tokenizer = causal, causal.tokenizer
        self._scorer = HuggingFaceScorer(causal)

    @property
    def sequence_len(self) -> int:
        """The context, with room for one token of an answer."""
        return self.causal.sequence_len - 1

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.causal.device

    @property
    def tokens_per_pass(self) -> int:
        """What suits the device."""
        return self._scorer.tokens_per_pass

    def prompt(self, conversation: Conversation) -> list[int]:
        """By the chat template, else as questions and answers in a text."""
        return self._encode(self._text(_asked(conversation)))

    def letter_ids(self, conversation: Conversation, letter: str) -> list[int]:
        """Token ids that follow the prompt where the answer is this letter: tokens of a word differ by what precedes it."""
        asked = _asked(conversation)
        start, whole = self._text(asked), self._text([*asked, {"role": "assistant", "content": letter}], is_open=False)
        if not whole.startswith(start):  # some templates write past answers otherwise than new ones
            whole = start + letter
        before, token_ids = self._encode(start), self._encode(whole)
        if token_ids[: len(before)] != before:  # a prompt that ends within a token, such as with a space
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
        """In batches of similar lengths."""
        return self.causal.generate_batch(prompts, max_new_tokens)

    def sample(self, prompt: Sequence[int], answering: Answering) -> list[list[int]]:
        """All of them together."""
        return self.causal.generate_batch(
            [prompt] * answering.num_samples,
            answering.max_new_tokens,
            answering.temperature,
            answering.top_k,
            answering.seed,
        )

    def read(self, token_ids: Sequence[int]) -> Answer:
        """The text; of a model that goes on with questions of its own, what comes before them."""
        text = self.tokenizer.decode(token_ids)
        return Answer(text if self.tokenizer.has_template else text.partition(f"\n{QUESTION}")[0], [])

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
    """The messages up to the answer that is wanted, each a text, and how it shall look."""
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
    """A message as a paragraph; the space before an answer is its first token's."""
    heading = {"user": f"{QUESTION} ", "assistant": f"{ANSWER} "}.get(message["role"], "")
    return heading + message["content"] + ("\n" if message["role"] == "assistant" else "")

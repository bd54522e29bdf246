"""Models that answer ChatCORE questions: this package's engine, and Hugging Face models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.hardware import padded_length
from nanochat_lit.common.tool_format import CALL_END, CALL_START
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.rollout import messages_of
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.evaluation.huggingface import HuggingFaceModel, HuggingFaceScorer
from nanochat_lit.evaluation.scoring import TOKENS_PER_PASS
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tokenizer import Tokenizer, render_for_completion
from nanochat_lit.tokenizer.chat import text_of

QUESTION, ANSWER = "Question:", "Answer:"
"""Prefixes of the turns of a conversation without a chat template."""


@dataclass(frozen=True, kw_only=True)
class Answering(SamplingParams):
    """Sampling settings of generative questions; answers do not depend on the number of ranks."""

    num_samples: int = 1
    """Answers per question."""
    max_new_tokens: int = 512
    """Maximum length of an answer, tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(num_samples=self.num_samples)
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(
                f"{self.num_samples} samples at temperature 0 would be identical; set a positive temperature"
            )


class Completion(NamedTuple):
    """A parsed completion, as tasks evaluate it."""

    text: str
    """Visible text; of several turns, that of the last one."""
    tool_calls: list[str]
    """Expressions of the calculator calls, and calls of functions as JSON."""


def completion_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Completion:
    """Parse the token ids of a completion, without its prompt."""
    text, calls = "", []
    for message in messages_of(tokenizer, token_ids)[::2]:
        text = text_of(message["content"])
        calls += [part["text"] for part in message["content"] if part["type"] == "python"]
        calls += [after.partition(CALL_END)[0] for after in text.split(CALL_START)[1:]]
    return Completion(text, calls)


class EngineAnswerer:
    """Answers with the engine and its calculator tool; `tokens_per_pass` limits the prompt tokens of `next_logits`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sequence_len, self.device = engine.model.config.sequence_len, engine.model.device
        self.tokens_per_pass = TOKENS_PER_PASS.get(self.device.type, 4096)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the prompt for the last answer of a conversation; a given last answer is removed."""
        return render_for_completion(self.engine.tokenizer, conversation)

    def letter_ids(self, conversation: Conversation, letter: str) -> list[int]:  # noqa: ARG002 - the same anywhere
        """Return the letter's tokens; control tokens around it make them independent of the context."""
        return self.engine.tokenizer.encode(letter)

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return logits of each prompt's next token before the softcap, (N, V); the softcap keeps their order."""
        model = self.engine.model
        inputs, rows, last = _padded(prompts, self.sequence_len, self.device)
        return model.unembed(model.features(inputs)[rows, last])

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Return the greedy completion of each prompt."""
        return self.engine.generate_batch(prompts, max_new_tokens=max_new_tokens)

    def sample(self, prompt: Sequence[int], answering: Answering) -> list[list[int]]:
        """Return several completions of a prompt, which depend only on the arguments."""
        return self.engine.generate(prompt, answering.num_samples, **answering.numbers())

    def read(self, token_ids: Sequence[int]) -> Completion:
        """Return the visible text and the calculator expressions."""
        return completion_of(self.engine.tokenizer, token_ids)


class HuggingFaceAnswerer:
    """Answers with a transformers model, without a calculator; the methods are those of `EngineAnswerer`.

    Appends the task's instruction on the answer format to the question, because the model was not trained on the task.
    """

    def __init__(self, causal: HuggingFaceModel) -> None:
        self.causal, self.tokenizer = causal, causal.tokenizer
        self._scorer = HuggingFaceScorer(causal)
        self.sequence_len = causal.sequence_len - 1  # one token for the answer
        self.device, self.tokens_per_pass = causal.device, self._scorer.tokens_per_pass

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
        """Return logits of each prompt's next token, (N, V) float32."""
        inputs, rows, last = _padded(prompts, self.sequence_len, self.device)
        return self._scorer.logits(self._scorer.states(inputs, None, rows, last))

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Return the greedy completion of each prompt."""
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


Answerer = EngineAnswerer | HuggingFaceAnswerer


def _padded(prompts: Sequence[Sequence[int]], sequence_len: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompts padded on the right, (N, T), where causal attention ignores it; row and column of each last token."""
    length = padded_length(max(map(len, prompts)), sequence_len)
    inputs = torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts], device=device)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    return inputs, torch.arange(len(prompts), device=device), last


def _asked(conversation: Conversation) -> list[dict[str, str]]:
    messages = [
        {"role": message["role"], "content": text_of(message["content"])} for message in conversation["messages"]
    ]
    if messages[-1]["role"] == "assistant":
        messages.pop()
    if instruction := conversation.get("instruction"):
        messages[-1]["content"] += f"\n\n{instruction}"
    return messages


def _turn(message: dict[str, str]) -> str:
    """Format a message as a paragraph; the space before an answer belongs to its first token."""
    heading = {"user": f"{QUESTION} ", "assistant": f"{ANSWER} "}.get(message["role"], "")
    return heading + message["content"] + ("\n" if message["role"] == "assistant" else "")

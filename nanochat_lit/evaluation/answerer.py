"""Interface to models that answer ChatCORE questions, and its implementation for the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nanochat_lit.common.lengths import padded_length
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.evaluation.scoring import TOKENS_PER_PASS
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tokenizer import Tokenizer, parse_completion, render_for_completion


@dataclass(frozen=True, kw_only=True)
class Answering(SamplingParams):
    """Sampling settings of generative questions; answers do not depend on the number of ranks."""

    num_samples: int = 1
    """Answers per question."""
    max_new_tokens: int = 512
    """Maximum length of an answer, tokens."""


class Completion(NamedTuple):
    """A parsed completion, as tasks evaluate it."""

    text: str
    """Visible text."""
    tool_calls: list[str]
    """Expressions of the calculator calls."""


def completion_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Completion:
    """Parse a completion.

    Args:
        tokenizer: Tokenizer of the model.
        token_ids: Completion, without the prompt.
    """
    parts = parse_completion(tokenizer, token_ids)
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return Completion(text, [part["text"] for part in parts if part["type"] == "python"])


class Answerer(Protocol):
    """A chat model that can be evaluated."""

    @property
    def sequence_len(self) -> int:
        """Maximum length of a prompt, tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        ...

    @property
    def tokens_per_pass(self) -> int:
        """Maximum number of prompt tokens per call of `next_logits`."""
        ...

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the prompt for the last answer of a conversation; a given last answer is removed."""
        ...

    def letter_ids(self, conversation: Conversation, letter: str) -> list[int]:
        """Return the token ids of this letter as an answer, without the end token."""
        ...

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return logits of each prompt's next token, (N, V); only their order is used."""
        ...

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Return the greedy completion of each prompt."""
        ...

    def sample(self, prompt: Sequence[int], answering: Answering) -> list[list[int]]:
        """Return several completions of a prompt, which depend only on the arguments."""
        ...

    def read(self, token_ids: Sequence[int]) -> Completion:
        """Convert a completion to the form that tasks evaluate."""
        ...


class EngineAnswerer:
    """Answers with the engine and its calculator tool.

    Args:
        engine: Model and tokenizer.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def sequence_len(self) -> int:
        """Context length of the model."""
        return self.engine.model.config.sequence_len

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.engine.model.device

    @property
    def tokens_per_pass(self) -> int:
        """Default of the device."""
        return TOKENS_PER_PASS.get(self.device.type, 4096)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Render the prompt with nanochat control tokens."""
        return render_for_completion(self.engine.tokenizer, conversation)

    def letter_ids(self, conversation: Conversation, letter: str) -> list[int]:  # noqa: ARG002 - the same anywhere
        """Return the letter's tokens; control tokens around it make them independent of the context."""
        return self.engine.tokenizer.encode(letter)

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return logits before the softcap, (N, V); the softcap is monotone."""
        model = self.engine.model
        hidden = model.features(padded(prompts, self.sequence_len, self.device))
        return model.unembed(hidden[torch.arange(len(prompts), device=self.device), last_places(prompts, self.device)])

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Complete the prompts concurrently, limited by the number of slots."""
        return self.engine.generate_batch(prompts, max_new_tokens=max_new_tokens)

    def sample(self, prompt: Sequence[int], answering: Answering) -> list[list[int]]:
        """Sample completions with a shared prefill."""
        return self.engine.generate(prompt, answering.num_samples, **answering.numbers())

    def read(self, token_ids: Sequence[int]) -> Completion:
        """Return the visible text and the calculator expressions."""
        return completion_of(self.engine.tokenizer, token_ids)


def padded(prompts: Sequence[Sequence[int]], sequence_len: int, device: torch.device) -> Tensor:
    """Pad token ids to (N, T) on the right, where causal attention ignores padding.

    Args:
        prompts: Token ids of any lengths.
        sequence_len: Context length.
        device: Device of the result.
    """
    length = padded_length(max(map(len, prompts)), sequence_len)
    return torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts], device=device)


def last_places(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the position of the last token of each prompt, (N,).

    Args:
        prompts: Token ids of any lengths.
        device: Device of the result.
    """
    return torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)

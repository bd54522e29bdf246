"""Who answers the questions of ChatCORE: our engine, or another library's model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nanochat_lit.common.lengths import padded_length
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.answers import Answer, answer_of
from nanochat_lit.evaluation.scoring import TOKENS_PER_PASS
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tokenizer import render_for_completion


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How generative questions are answered."""

    num_samples: int = 1
    """Answers to each question."""
    temperature: float = 0.0
    """0 takes the most likely token; several samples need more."""
    top_k: int | None = None
    """Sample among this many most likely tokens; None or 0 is all."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    seed: int = 0
    """The same seed gives the same answers, on any number of ranks."""


class Answerer(Protocol):
    """Anything that can be asked in conversation."""

    @property
    def sequence_len(self) -> int:
        """Longest prompt in tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def tokens_per_pass(self) -> int:
        """Prompt tokens that `next_logits` is given at a time."""
        ...

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids after which the answer to a conversation begins; a last answer that it has is left out."""
        ...

    def letter_ids(self, conversation: Conversation, letter: str) -> list[int]:
        """Token ids of an answer that is this letter, without what ends it."""
        ...

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(N, V) what each prompt's next token may be; only the order within a row counts."""
        ...

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The most likely completion of each prompt."""
        ...

    def sample(self, prompt: Sequence[int], answering: Answering) -> list[list[int]]:
        """Several completions of a prompt, which depend on nothing but what is given here."""
        ...

    def read(self, token_ids: Sequence[int]) -> Answer:
        """A completion as the tasks judge it."""
        ...


class EngineAnswerer:
    """Our engine, with the calculator.

    Args:
        engine: Model and tokenizer.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def sequence_len(self) -> int:
        """The context."""
        return self.engine.model.config.sequence_len

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.engine.model.device

    @property
    def tokens_per_pass(self) -> int:
        """What suits the device."""
        return TOKENS_PER_PASS.get(self.device.type, 4096)

    def prompt(self, conversation: Conversation) -> list[int]:
        """By our control tokens."""
        return render_for_completion(self.engine.tokenizer, conversation)

    def letter_ids(self, conversation: Conversation, letter: str) -> list[int]:  # noqa: ARG002 - the same anywhere
        """Control tokens keep what is around it away."""
        return self.engine.tokenizer.encode(letter)

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(N, V), without the softcap, which keeps their order."""
        model = self.engine.model
        hidden = model.features(padded(prompts, self.sequence_len, self.device))
        return model.unembed(hidden[torch.arange(len(prompts), device=self.device), last_places(prompts, self.device)])

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """All of them at once, as many as there are slots."""
        return self.engine.generate_batch(prompts, max_new_tokens=max_new_tokens)

    def sample(self, prompt: Sequence[int], answering: Answering) -> list[list[int]]:
        """The prompt is read once."""
        return self.engine.generate(
            prompt,
            answering.num_samples,
            max_new_tokens=answering.max_new_tokens,
            temperature=answering.temperature,
            top_k=answering.top_k,
            seed=answering.seed,
        )

    def read(self, token_ids: Sequence[int]) -> Answer:
        """The text, and the expressions given to the calculator."""
        return answer_of(self.engine.tokenizer, token_ids)


def padded(prompts: Sequence[Sequence[int]], sequence_len: int, device: torch.device) -> Tensor:
    """(N, T) token ids; what fills them up is on the right, where a causal model does not see it.

    Args:
        prompts: Token ids of any lengths.
        sequence_len: The context.
        device: Where to put them.
    """
    length = padded_length(max(map(len, prompts)), sequence_len)
    return torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts], device=device)


def last_places(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(N,) where the last token of each prompt stands.

    Args:
        prompts: Token ids of any lengths.
        device: Where to put them.
    """
    return torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)

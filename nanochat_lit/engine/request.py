"""What one completion needs: its prompt, how to choose tokens, when to end."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import SamplingParams

FAILED = "error"
"""The finish_reason of a request whose logits are not finite; others go on."""
NOT_FINITE = (
    "the model's output for this request is not finite: its weights may be damaged, or its compute_dtype too narrow"
)


@dataclass(frozen=True, kw_only=True)
class Request(SamplingParams):
    """One completion of one prompt."""

    prompt_ids: Sequence[int]
    """The prompt's tokens; it begins with the tokenizer's bos_id."""
    sample: int = 0
    """Which of several samples of the same seed this is."""
    logprobs: bool = False
    """Whether to report the log-probability of each token (at temperature 1, in nats)."""


def check_prompt(prompt: Sequence[int], context: int, vocab_size: int) -> None:
    """Refuse a prompt that cannot be completed.

    Args:
        prompt: Its tokens.
        context: The model's sequence_len.
        vocab_size: Its vocabulary.

    Raises:
        UserError: If it is empty, foreign or longer than the context.
    """
    if not prompt:
        raise UserError("the prompt is empty; begin it with the tokenizer's bos_id")
    if len(prompt) > context:
        raise UserError(f"the prompt has {len(prompt)} tokens and the model's context is {context}; shorten the prompt")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise UserError(
            f"the prompt's token ids run from {min(prompt)} to {max(prompt)}, the model's from 0 to {vocab_size - 1}; "
            "encode it with the model's own tokenizer"
        )

"""What one completion needs: its prompt, how to choose tokens, when to end."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling import check_sampling

MAX_STOP_STRINGS = 16


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion of one prompt."""

    prompt_ids: Sequence[int]
    """The prompt's tokens; it begins with the tokenizer's bos_id."""
    max_new_tokens: int = 256
    """Longest completion in tokens, tool results included."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int | None = None
    """Sample among this many likeliest tokens; None or 0 is all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 is all."""
    seed: int = 0
    """The same seed gives the same tokens, whatever else is running."""
    sample: int = 0
    """Which of several samples of the same seed this is."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these that its text would contain."""
    logprobs: bool = False
    """Whether to report the log-probability of each token (at temperature 1, in nats)."""


def check_request(request: Request, context: int, vocab_size: int) -> None:
    """Refuse a request that cannot be served.

    Args:
        request: What was asked for.
        context: The model's sequence_len.
        vocab_size: Its vocabulary.

    Raises:
        UserError: If the prompt is empty, foreign or longer than the context, or a setting is impossible.
    """
    check_sampling(request.temperature, request.top_k, request.top_p)
    if request.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {request.max_new_tokens}; ask for at least 1")
    if len(request.stop) > MAX_STOP_STRINGS or not all(request.stop):
        raise UserError(f"stop takes up to {MAX_STOP_STRINGS} strings, none of them empty; got {list(request.stop)}")
    prompt = request.prompt_ids
    if not prompt:
        raise UserError("the prompt is empty; begin it with the tokenizer's bos_id")
    if len(prompt) > context:
        raise UserError(f"the prompt has {len(prompt)} tokens and the model's context is {context}; shorten the prompt")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise UserError(
            f"the prompt's token ids run from {min(prompt)} to {max(prompt)}, the model's from 0 to {vocab_size - 1}; "
            "encode it with the model's own tokenizer"
        )

"""Requests in the slots of the engine, and the tokens that it emits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from nanochat_lit.engine.answer_text import AnswerText, Piece, TokenScore
from nanochat_lit.engine.sampling import HostCopy, LogitRules
from nanochat_lit.engine.sampling_params import Request
from nanochat_lit.engine.tool_use import ToolRow


class Emitted(NamedTuple):
    """One new token of one request."""

    slot: int
    """Handle returned by `Engine.admit`."""
    token_id: int
    is_forced: bool
    """Whether a tool forced the token, rather than the model sampling it."""
    pieces: list[Piece]
    """Text completed by this token."""
    logprob: float | None
    """Log-probability in nats at temperature 1, if requested and the model sampled the token."""
    finish_reason: str | None
    """None while the request is running; with its last token "stop" (end token or stop string) or "length". FAILED has
    no token."""
    top: Sequence[tuple[int, float]] = ()
    """Ids and log-probabilities of the most likely tokens, if requested."""
    error: str = ""
    """Reason of a failure."""
    prompt_scores: Sequence[TokenScore] = ()
    """With the first token, if requested: scores of the prompt's tokens from the second on."""


@dataclass(slots=True)
class Row:
    """A request in a slot."""

    slot: int
    request: Request
    tool: ToolRow
    text: AnswerText
    random: Random
    rules: LogitRules | None
    num_left: int
    """Remaining number of tokens."""
    prompt_scores: list[TokenScore] = field(default_factory=list)
    num_pending: int = 0
    """Number of sampled tokens that have not reached the host."""
    forced: int | None = None
    """Next token forced by a tool."""
    unread: int | None = None
    """Forced token that replaces the sampled token in the next step."""
    has_left: bool = False
    has_failed: bool = False
    """Whether its logits were not finite, so that its keys and values may be NaN."""


@dataclass(slots=True)
class Prefill:
    """A prompt in prefill, for one or several samples."""

    rows: list[Row]
    prompt_ids: Sequence[int]
    num_read: int = 0
    scores: list[TokenScore] = field(default_factory=list)
    """Scores of the tokens read so far, if a row wants them."""


@dataclass(slots=True)
class Chosen:
    """Sampled tokens that are being copied to the host."""

    rows: list[Row]
    tokens: HostCopy
    logprobs: HostCopy | None
    """One per token."""
    top: tuple[HostCopy, HostCopy] | None
    """Ids and log-probabilities of the most likely ones."""

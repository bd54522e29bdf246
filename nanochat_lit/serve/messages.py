"""Messages between the server and its workers."""

from collections.abc import Sequence
from typing import NamedTuple

from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.sampling_params import Request, SamplingParams


class Submit(NamedTuple):
    """To a worker: a new request."""

    key: int
    request: Request
    client: str
    deadline_s: float
    """Deadline on time.monotonic, which all processes of a machine share, so that transfer time counts too."""


class Cancel(NamedTuple):
    """To a worker: this request's client has disconnected."""

    key: int


class Close(NamedTuple):
    """To a worker: exit."""


class Ready(NamedTuple):
    """From a worker: the model is loaded and warmed up."""

    num_slots: int
    context: int
    """Context length of the model."""
    defaults: SamplingParams
    """Default sampling parameters of the export."""
    kernel: str
    """Description of the decode kernel."""
    about: str = ""
    """Size and training of the model in a sentence."""


class Beat(NamedTuple):
    """From a worker: heartbeat of an idle loop."""


class Failed(NamedTuple):
    """From a worker: it cannot start because of a user error."""

    message: str


class TokenScore(NamedTuple):
    """Log-probability of a token, in nats at temperature 1."""

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]
    """Ids and log-probabilities of the most likely tokens at its place."""


def join_parts(parts: Sequence[Piece]) -> list[Piece]:
    """The same with neighbours of one type joined."""
    joined: list[Piece] = []
    for kind, text in parts:
        if joined and joined[-1].type == kind:
            joined[-1] = Piece(kind, joined[-1].text + text)
        else:
            joined.append(Piece(kind, text))
    return joined


class Update(NamedTuple):
    """New results of one request."""

    key: int
    parts: list[Piece]
    """New finalized parts."""
    num_tokens: int
    """Number of new tokens, without the end token."""
    finish_reason: str | None
    error: tuple[int, str, int | None] | None
    """HTTP status, message and Retry-After seconds; this is the last update."""
    scores: Sequence[TokenScore] = ()
    """Log-probabilities of the new sampled tokens, including the end token, if requested."""
    prompt_scores: Sequence[TokenScore] = ()
    """Those of the prompt's tokens from the second on, if requested, in the first update."""

    def followed_by(self, later: "Update") -> "Update":
        """Merge with a later update."""
        if self.finish_reason is not None or self.error is not None:
            return self
        parts, num_tokens = join_parts([*self.parts, *later.parts]), self.num_tokens + later.num_tokens
        scores, prompt_scores = (*self.scores, *later.scores), (*self.prompt_scores, *later.prompt_scores)
        return Update(self.key, parts, num_tokens, later.finish_reason, later.error, scores, prompt_scores)


class Report(NamedTuple):
    """From a worker: its load, and updates of some requests."""

    num_queued: int
    num_active: int
    updates: list[Update]

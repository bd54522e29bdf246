"""Messages between the server and its workers."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from nanochat_lit.engine.answer_text import Piece, TokenScore
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


class Update(NamedTuple):
    """New results of one request."""

    key: int
    parts: Sequence[Piece] = ()
    """New finalized parts."""
    num_tokens: int = 0
    """Number of new tokens, without the end token."""
    finish_reason: str | None = None
    error: tuple[int, str, int | None] | None = None
    """HTTP status, message and Retry-After seconds; this is the last update."""
    scores: Sequence[TokenScore] = ()
    """Log-probabilities of the new sampled tokens, including the end token, if requested."""
    prompt_scores: Sequence[TokenScore] = ()
    """Those of the prompt's tokens from the second on, if requested, in the first update."""

    @property
    def is_last(self) -> bool:
        """Whether the answer ends with it."""
        return self.finish_reason is not None or self.error is not None


def join_parts(parts: Sequence[Piece]) -> list[Piece]:
    """The same with neighbours of one type joined."""
    return [Piece(kind, "".join(text for _, text in some)) for kind, some in groupby(parts, key=itemgetter(0))]


def merged(updates: Sequence[Update]) -> Update:
    """Return one update in place of several of one request; what comes after its end is dropped."""
    ends = (number for number, one in enumerate(updates, start=1) if one.is_last)
    updates = updates[: next(ends, len(updates))]
    return updates[-1]._replace(
        parts=join_parts([part for one in updates for part in one.parts]),
        num_tokens=sum(one.num_tokens for one in updates),
        scores=tuple(score for one in updates for score in one.scores),
        prompt_scores=tuple(score for one in updates for score in one.prompt_scores),
    )


class Report(NamedTuple):
    """From a worker: its load, and updates of some requests."""

    num_queued: int
    num_active: int
    updates: list[Update]

"""What the server and its workers say to each other."""

from typing import NamedTuple

from nanochat_lit.engine.request import Request
from nanochat_lit.engine.sampling_params import SamplingParams


class Submit(NamedTuple):
    """To a worker: a new request."""

    key: int
    request: Request
    client: str
    deadline_s: float
    """When it is given up, by time.monotonic, which all processes of a machine share: time on the way counts, too."""


class Cancel(NamedTuple):
    """To a worker: this request's client has left."""

    key: int


class Close(NamedTuple):
    """To a worker: end."""


class Ready(NamedTuple):
    """From a worker: the model is loaded and warm."""

    num_slots: int
    context: int
    """The model's sequence_len."""
    defaults: SamplingParams
    """Of the export."""
    kernel: str
    """What computes its decode steps, in words."""


class Beat(NamedTuple):
    """From a worker: its loop runs, and has nothing else to tell."""


class Failed(NamedTuple):
    """From a worker: it cannot start, by a mistake of the user."""

    message: str


class Update(NamedTuple):
    """News of one request."""

    key: int
    parts: list[tuple[str, str]]
    """(type, text) that became certain."""
    num_tokens: int
    """New tokens, the one that ends the answer not counted."""
    finish_reason: str | None
    error: tuple[int, str, int | None] | None
    """HTTP status, message, and seconds after which to try again; nothing follows it."""

    def followed_by(self, later: "Update") -> "Update":
        """Both as one; the end of a request is its end."""
        if self.finish_reason is not None or self.error is not None:
            return self
        parts, num_tokens = [*self.parts, *later.parts], self.num_tokens + later.num_tokens
        return Update(self.key, parts, num_tokens, later.finish_reason, later.error)


class Report(NamedTuple):
    """From a worker: how busy it is, and news of some requests."""

    num_queued: int
    num_active: int
    updates: list[Update]

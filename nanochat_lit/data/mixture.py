"""Several sources as one, by weight: the next document comes from the source that is furthest behind its share."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanochat_lit.common.download_progress import Report
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.cursor import Cursor, State
from nanochat_lit.data.sources import make_cursor
from nanochat_lit.data.text_source import Split, TextSource


class Mixture(TextSource):
    """Sources by weight. Each begins again when it ends, in a new order, whatever the others do.

    A weight is a share of characters: of the text read at any moment the shares are right up to a document. Nothing is
    drawn at random, so the same mixture always gives the same documents, also after a resume.

    Args:
        sources: By name.
        weights: By the same names, positive; they need not add up to anything.
    """

    def __init__(self, sources: dict[str, TextSource], weights: dict[str, float]) -> None:
        if not sources:
            raise UserError("a mixture needs at least one source")
        if sources.keys() != weights.keys():
            raise UserError(f"weights are given for {', '.join(weights)}, the sources are {', '.join(sources)}")
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise UserError(f"the weight of {name} is {weight}, but must be positive")
        self.sources = sources
        self.weights = weights

    @property
    def name(self) -> str:
        """The names of the sources."""
        return "mixture of " + ", ".join(source.name for source in self.sources.values())

    def prepare(self, mirror: str | None = None, report: Report | None = None) -> None:
        """All of them."""
        for source in self.sources.values():
            source.prepare(mirror, report)

    def check(self) -> None:
        """All of them."""
        for source in self.sources.values():
            source.check()

    def close(self) -> None:
        """All of them."""
        for source in self.sources.values():
            source.close()

    def validation(self) -> dict[str, str]:
        """The validation files of all, by the name of the source and of the file."""
        return {
            f"{name}/{file}": sha256
            for name, source in self.sources.items()
            for file, sha256 in source.validation().items()
        }

    def num_rows(self, split: Split, enough: int | None = None) -> int | None:
        """Of the source that has the fewest: every reader needs documents from each."""
        counts = [source.num_rows(split, enough) for source in self.sources.values()]
        known = [count for count in counts if count is not None]
        return min(known) if known else None

    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Every document of every source once, by weight as long as there are documents of all."""
        streams = {name: source.documents(split) for name, source in self.sources.items()}
        return (item for _, item in _drawn(streams, self.weights, dict.fromkeys(streams, 0)))

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """One epoch of every source, by weight as long as there are documents of all."""
        streams = {name: source.iterate(split, epoch, rank, world_size) for name, source in self.sources.items()}
        return (item for _, item in _drawn(streams, self.weights, dict.fromkeys(streams, 0)))

    def cursor(self, split: str, rank: int, world_size: int) -> "MixtureCursor":
        """A reader that knows its place in every source."""
        cursors = {name: make_cursor(source, split, rank, world_size) for name, source in self.sources.items()}
        return MixtureCursor(cursors, self.weights)


class MixtureCursor:
    """The cursors of the sources, and how many characters each has given; see `BlockCursor`."""

    def __init__(self, cursors: Mapping[str, Cursor], weights: Mapping[str, float]) -> None:
        self._cursors = cursors
        self._weights = weights
        self._num_chars = dict.fromkeys(cursors, 0)
        self._read_ahead: deque[tuple[str, int]] = deque()
        self._last: str | None = None
        self._num_settled = 0
        self.num_taken = 0

    def __iter__(self) -> Iterator[Any]:
        streams = {name: iter(cursor) for name, cursor in self._cursors.items()}
        for name, item in _drawn(streams, self._weights, dict(self._num_chars)):
            self._settle()
            self._read_ahead.append((name, len(item)))
            yield item

    def state_dict(self) -> State:
        """The place after the last item that was taken."""
        self._settle()
        cursors = {name: cursor.state_dict() for name, cursor in self._cursors.items()}
        return {"cursors": cursors, "num_chars": dict(self._num_chars)}

    def load_state_dict(self, state: State) -> None:
        """Begin the next iteration at the place of `state`.

        Raises:
            UserError: If it is of another mixture.
        """
        if "cursors" not in state or state["cursors"].keys() != self._cursors.keys():
            raise UserError("the checkpoint was made with other data: the sources of the mixture are not the same")
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(state["cursors"][name])
        self._num_chars = dict(state["num_chars"])

    def last_place(self) -> list[int]:
        """The number of the source, and the place in it."""
        self._settle()
        assert self._last is not None, "no item has been taken"
        return [list(self._cursors).index(self._last), *self._cursors[self._last].last_place()]

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """The places of all sources for another number of readers; see `Cursor.merge`."""
        cursors = {}
        for number, (name, cursor) in enumerate(self._cursors.items()):
            again = [place[1:] for place in more if place[0] == number]
            cursors[name] = cursor.merge([state["cursors"][name] for state in states], num_readers, again)
        totals = {name: sum(state["num_chars"][name] for state in states) for name in self._cursors}
        return {"cursors": cursors, "num_chars": {name: total // num_readers for name, total in totals.items()}}

    def _settle(self) -> None:
        while self._num_settled < self.num_taken and self._read_ahead:
            name, num_chars = self._read_ahead.popleft()
            self._cursors[name].num_taken += 1
            self._num_chars[name] += num_chars
            self._last = name
            self._num_settled += 1


def _drawn(
    streams: Mapping[str, Iterator[Any]], weights: Mapping[str, float], num_chars: dict[str, int]
) -> Iterator[tuple[str, Any]]:
    """Items of streams with their names, always from the one that is furthest behind; those that end drop out."""
    left = dict(streams)
    while left:
        name = min(left, key=lambda name: num_chars[name] / weights[name])
        item = next(left[name], None)
        if item is None:
            del left[name]
        else:
            num_chars[name] += len(item)
            yield name, item

"""Weighted mixture of sources: the next document comes from the source furthest behind its share."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanochat_lit.common.download_progress import Report
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.cursor import Cursor, State
from nanochat_lit.data.sources import make_cursor
from nanochat_lit.data.text_source import Split, TextSource


class Mixture(TextSource):
    """Weighted mixture of sources. Each source starts a new epoch independently when it ends.

    Weights are shares of characters, accurate at any time to within a document. The order is deterministic, also after
    a resume.

    Args:
        sources: Sources by name.
        weights: Positive weights by name; normalised automatically.
    """

    def __init__(self, sources: dict[str, TextSource], weights: dict[str, float]) -> None:
        if not sources:
            raise UserError("a mixture needs at least one source")
        if sources.keys() != weights.keys():
            raise UserError(f"weights are set for {', '.join(weights)}, but the sources are {', '.join(sources)}")
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise UserError(f"the weight of {name} is {weight}, but it must be positive")
        self.sources = sources
        self.weights = weights

    @property
    def name(self) -> str:
        """Names of the sources."""
        return "mixture of " + ", ".join(source.name for source in self.sources.values())

    def prepare(self, mirror: str | None = None, report: Report | None = None) -> None:
        """Apply to all sources."""
        for source in self.sources.values():
            source.prepare(mirror, report)

    def check(self) -> None:
        """Apply to all sources."""
        for source in self.sources.values():
            source.check()

    def close(self) -> None:
        """Apply to all sources."""
        for source in self.sources.values():
            source.close()

    def validation(self) -> dict[str, str]:
        """Return the validation checksums of all sources, by names of source and file."""
        return {
            f"{name}/{file}": sha256
            for name, source in self.sources.items()
            for file, sha256 in source.validation().items()
        }

    def num_rows(self, split: Split, enough: int | None = None) -> int | None:
        """Return the minimum over the sources, because every reader needs documents from each."""
        counts = [source.num_rows(split, enough) for source in self.sources.values()]
        known = [count for count in counts if count is not None]
        return min(known) if known else None

    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Yield every document of every source once, by weight until a source ends."""
        streams = {name: source.documents(split) for name, source in self.sources.items()}
        return (item for _, item in _drawn(streams, self.weights, dict.fromkeys(streams, 0)))

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield one epoch of every source, by weight until a source ends."""
        streams = {name: source.iterate(split, epoch, rank, world_size) for name, source in self.sources.items()}
        return (item for _, item in _drawn(streams, self.weights, dict.fromkeys(streams, 0)))

    def cursor(self, split: str, rank: int, world_size: int) -> "MixtureCursor":
        """Return a cursor with a position in every source."""
        cursors = {name: make_cursor(source, split, rank, world_size) for name, source in self.sources.items()}
        return MixtureCursor(cursors, self.weights)


class MixtureCursor:
    """Cursors of the sources, and the number of characters from each; see `BlockCursor`."""

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
        """Return the position after the last taken item."""
        self._settle()
        cursors = {name: cursor.state_dict() for name, cursor in self._cursors.items()}
        return {"cursors": cursors, "num_chars": dict(self._num_chars)}

    def load_state_dict(self, state: State) -> None:
        """Start the next iteration at the position `state`.

        Raises:
            UserError: If the state belongs to another mixture.
        """
        if "cursors" not in state or state["cursors"].keys() != self._cursors.keys():
            raise UserError("the checkpoint was made with other data: the sources of the mixture are not the same")
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(state["cursors"][name])
        self._num_chars = dict(state["num_chars"])

    def last_place(self) -> list[int]:
        """Return the index of the source and the position in it."""
        self._settle()
        assert self._last is not None, "no item has been taken"
        return [list(self._cursors).index(self._last), *self._cursors[self._last].last_place()]

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """Return the positions in all sources for another number of readers; see `Cursor.merge`."""
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
    """Yield items with their source names, always from the source furthest behind, until all have ended."""
    left = dict(streams)
    while left:
        name = min(left, key=lambda name: num_chars[name] / weights[name])
        item = next(left[name], None)
        if item is None:
            del left[name]
        else:
            num_chars[name] += len(item)
            yield name, item

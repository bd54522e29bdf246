"""Sources of documents or conversations: the base class, sources in memory, and the weighted mixture of sources."""

import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, Protocol

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.cursor import Cursor, ItemCursor, State

Split = Literal["train", "val", "all"]


class TextSource(ABC):
    """Training and validation items: documents (strings) or conversations (dicts); recipes select it by `class_path`.

    Only `iterate` is required. `prepare` is called by one process per machine, before any other method; it shares
    information with other processes through files.
    """

    @abstractmethod
    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield every `world_size`-th item of one epoch, starting with item `rank`; may be endless.

        The order of an epoch must be deterministic, so that a run can resume at its position.
        """

    @property
    def name(self) -> str:
        """Name for messages and tables."""
        return type(self).__name__

    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Yield every item of a split once, in a fixed order."""
        return self.iterate(split)

    def cursor(self, split: str, rank: int, world_size: int) -> Cursor:
        """Return the position of one of `world_size` readers."""
        return ItemCursor(self, split, rank, world_size)

    def prepare(self, mirror: str | None = None) -> None:  # noqa: B027 - optional
        """Provide everything that training needs to start; `mirror` is a URL to download from instead of the hub."""

    def check(self) -> None:  # noqa: B027 - optional for sources without files
        """Check the available data; a UserError names a damaged file and, if known, the record."""

    def close(self) -> None:  # noqa: B027 - optional
        """Stop background work of `prepare`."""

    def validation(self) -> dict[str, str]:
        """Return the sha256 of the validation data by name; empty if they cannot be pinned."""
        return {}

    def num_rows(self, split: Split, enough: int | None = None) -> int | None:
        """Return the number of records of a split; stops counting at `enough`. None if unknown."""
        del split, enough
        return None


class Items(Protocol):
    """A sequence with a length and indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SplitSource(TextSource):
    """Training and validation sequences; training epochs are shuffled by seed and epoch."""

    def __init__(self, train: Items, val: Items, seed: int = 0) -> None:
        self.train = train
        self.val = val
        self.seed = seed

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """As in `TextSource`."""
        num_train = len(self.train)
        end = num_train + len(self.val)
        order = array("q", {"train": range(num_train), "val": range(num_train, end), "all": range(end)}[split])
        if split == "train":
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
        for index in order[rank::world_size]:
            yield self.train[index] if index < num_train else self.val[index - num_train]


class CallableSource(TextSource):
    """A function that returns an iterator, such as `lambda: documents("train", seed)`.

    It is called once per epoch, so an endless generator is a single epoch. It ignores splits: use one function per
    split.
    """

    def __init__(self, function: Callable[[], Iterable[Any]]) -> None:
        self.function = function

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield every `world_size`-th item of a new iterator, regardless of split and epoch."""
        del split, epoch
        return islice(iter(self.function()), rank, None, world_size)


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

    def prepare(self, mirror: str | None = None) -> None:
        """Apply to all sources."""
        for source in self.sources.values():
            source.prepare(mirror)

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
        """Yield every document of every source once, by weight."""
        streams = {name: source.documents(split) for name, source in self.sources.items()}
        return (item for _, item in _drawn(streams, self.weights, dict.fromkeys(streams, 0)))

    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield one epoch of every source, by weight until a source ends."""
        streams = {name: source.iterate(split, epoch, rank, world_size) for name, source in self.sources.items()}
        return (item for _, item in _drawn(streams, self.weights, dict.fromkeys(streams, 0)))

    def cursor(self, split: str, rank: int, world_size: int) -> "MixtureCursor":
        """Return a cursor with a position in every source."""
        return MixtureCursor(self, split, rank, world_size)


class MixtureCursor(Cursor):
    """Cursors of the sources, and the number of characters from each."""

    def __init__(self, source: Mixture, split: str, rank: int, world_size: int) -> None:
        super().__init__(source, split, rank, world_size)
        self._cursors = {name: part.cursor(split, rank, world_size) for name, part in source.sources.items()}
        self._num_chars = dict.fromkeys(self._cursors, 0)

    def __iter__(self) -> Iterator[Any]:
        streams = {name: iter(cursor) for name, cursor in self._cursors.items()}
        for name, item in _drawn(streams, self._source.weights, dict(self._num_chars)):
            self._read_ahead.append((name, len(item)))
            yield item

    def take(self) -> list[int]:
        """Return the index of the source, and the position of the item in it."""
        name, num_chars = self._read_ahead.popleft()
        self._num_chars[name] += num_chars
        return [list(self._cursors).index(name), *self._cursors[name].take()]

    def state_dict(self) -> State:
        """As in `Cursor`."""
        cursors = {name: cursor.state_dict() for name, cursor in self._cursors.items()}
        return {"cursors": cursors, "num_chars": dict(self._num_chars)}

    def load_state_dict(self, state: State) -> None:
        """As in `Cursor`."""
        if "cursors" not in state or state["cursors"].keys() != self._cursors.keys():
            raise UserError("the checkpoint was made with other data: the sources of the mixture are not the same")
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(state["cursors"][name])
        self._num_chars = dict(state["num_chars"])

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """As in `Cursor`."""
        cursors = {}
        for number, (name, cursor) in enumerate(self._cursors.items()):
            again = [place[1:] for place in more if place[0] == number]
            cursors[name] = cursor.merge([state["cursors"][name] for state in states], num_readers, again)
        totals = {name: sum(state["num_chars"][name] for state in states) for name in self._cursors}
        return {"cursors": cursors, "num_chars": {name: total // num_readers for name, total in totals.items()}}


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

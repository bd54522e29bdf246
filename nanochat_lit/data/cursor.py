"""Resumable positions of the readers of a source.

`ItemCursor` counts the items of a sequential source. `BlockCursor` seeks in files:

    epoch    |window of files          |window of files          |
    blocks   |file 2, rows 0 to 1024   |file 0, rows 1024 to 2048| ...     shuffled by seed and epoch
    rows     |701, 13, 88, ...                                            shuffled within the block

The blocks of a window are assigned to the readers in rounds; the remaining blocks, too few for a round, are divided by
records. A position is (epoch, window, block, row). Another number of readers can share the remaining data of both (see
`Cursor.merge`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from nanochat_lit.common.errors import UserError

if TYPE_CHECKING:
    from nanochat_lit.data.shards import ShardSource
    from nanochat_lit.data.source import TextSource

State = dict[str, Any]
Block = tuple[int, int, int]
"""File, first row, last row + 1."""
MAX_EMPTY_EPOCHS = 10
"""Number of consecutive epochs without an item (only null records) after which a reader gives up."""
_NO_END = 2**60
"""Larger than the number of items of any epoch."""


class Cursor(ABC):
    """Iterates over the items of a source, for one of several readers, and tracks the position.

    The caller calls `take` when an item enters its buffer; items that were only read ahead are read again after a
    resume.
    """

    def __init__(self, source: Any, split: str, rank: int, world_size: int) -> None:
        self._source = source
        self._split = split
        self._rank = rank
        self._world_size = world_size
        self._read_ahead: deque[Any] = deque()  # positions of items that were yielded but not yet taken

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Iterate over the items from the position on."""

    @abstractmethod
    def take(self) -> list[int]:
        """Record that the next of the yielded items is in use; return its position."""

    @abstractmethod
    def state_dict(self) -> State:
        """Return the position after the last taken item as numbers and lists."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Start the next iteration at the position `state`; UserError if it is not a position in these data."""

    @abstractmethod
    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """Return the position from which `num_readers` readers continue with exactly the remaining items.

        `states` are those of all readers, which started together; `more` are positions of items that were taken but not
        used, to be read again.
        """

    def _nothing_to_read(self) -> NoReturn:
        raise UserError(
            f"the {self._split} split has no item for reader {self._rank} of {self._world_size} "
            "(processes times DataLoader workers); give more documents or use fewer readers"
        )


class ItemCursor(Cursor):
    """Cursor over a sequential source, whose order depends on the epoch.

    A position is (epoch, item index); resuming reads up to it again. Readers take turns from `start` on; items left by
    previous readers before it are distributed again:

        item     0  1  2  3  4  5  6  7  8  9 ...
        reader   .  1  .  0  .  1 |0  1  0  1       left by three previous readers: 1, 3, 5; start: 6; two readers now
    """

    def __init__(self, source: "TextSource", split: str, rank: int, world_size: int) -> None:
        super().__init__(source, split, rank, world_size)
        self._state: State = {"start": [0, 0], "at": [0, 0], "left": []}
        self._last: list[int] | None = None

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._state["at"]
        while True:
            is_empty = [epoch, first] >= self._state["start"] and first == 0
            for number, item in self._epoch_items(epoch, first):
                is_empty = False
                self._read_ahead.append([epoch, number])
                yield item
            if is_empty:
                self._nothing_to_read()
            if self._split != "train":
                return
            epoch, first = epoch + 1, 0

    def take(self) -> list[int]:
        """Return the epoch and index of the item."""
        place = self._last = self._read_ahead.popleft()
        return place

    def state_dict(self) -> State:
        """Return the readers' start, the position after the last taken item, and items left by previous readers."""
        at = self._state["at"] if self._last is None else [self._last[0], self._last[1] + 1]
        return {**self._state, "at": at, "left": [] if at >= self._state["start"] else self._state["left"]}

    def load_state_dict(self, state: State) -> None:
        """As in `Cursor`."""
        if len(state.get("at", ())) != 2:
            raise UserError(
                "the checkpoint's data position was written by an earlier version or with another kind of source; "
                "start the run again"
            )
        self._state, self._last = state, None

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """As in `Cursor`; the state does not depend on `num_readers`."""
        del num_readers
        start = max(states[0]["start"], *(state["at"] for state in states))  # no reader has read beyond it
        left = [[place[0], place[1], place[1] + 1, 1] for place in sorted(map(list, more))]
        for rank, state in enumerate(states):
            reader = ItemCursor(self._source, self._split, rank, len(states))
            reader.load_state_dict(state)
            for epoch in range(state["at"][0], start[0] + 1):
                shares = reader._shares(epoch, start[1] if epoch == start[0] else _NO_END)
                cut = _from(state["at"][1] if epoch == state["at"][0] else 0)
                left += [[epoch, share.start, share.stop, share.step] for share in map(cut, shares) if share]
        return {"start": start, "at": min([start, *(piece[:2] for piece in left)]), "left": left}

    def _shares(self, epoch: int, stop: int = _NO_END) -> list[range]:
        """Return the indices of this reader's items of an epoch, those of its turns last."""
        shares = []
        for index, (of_epoch, *piece) in enumerate(self._state["left"]):
            if of_epoch == epoch:
                shares.append(range(*piece)[(self._rank - index) % self._world_size :: self._world_size])
        if epoch >= self._state["start"][0]:
            first = self._state["start"][1] if epoch == self._state["start"][0] else 0
            shares.append(range(first + self._rank, stop, self._world_size))
        return shares

    def _epoch_items(self, epoch: int, first: int) -> Iterator[tuple[int, Any]]:
        """Yield this reader's items of an epoch with their indices, from an index on."""
        shares = [share for share in map(_from(first), self._shares(epoch)) if share]
        if not shares:
            return
        single = {share.start for share in shares if len(share) == 1}
        shares = [share for share in shares if len(share) > 1]
        step = self._world_size if len(shares) == 1 and shares[0].step == self._world_size and not single else 1
        offset = shares[0].start % step if shares else 0
        end = max([*single, *(share[-1] for share in shares)])
        items = self._source.iterate(self._split, epoch, offset, step)
        for number, item in zip(range(offset, end + 1, step), items, strict=False):
            if number in single or any(number in share for share in shares):
                yield number, item


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows of one block assigned to one reader."""

    epoch: int
    window: int
    block: int
    places: Sequence[int]
    piece: int
    """Index among the remainders of other readers; -1 if it is not one."""


class BlockCursor(Cursor):
    """Cursor over files, whose records can be read in any order."""

    def __init__(self, source: "ShardSource", split: str, rank: int, world_size: int) -> None:
        super().__init__(source, split, rank, world_size)
        self._state = _start_state()
        self._last: tuple[_Unit, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        last_found = self._state["at"][0]
        for unit, done in self._units():
            if unit.epoch > last_found + MAX_EMPTY_EPOCHS:
                self._nothing_to_read()
            for number, item in enumerate(self._items(unit, done), start=done + 1):
                if item is None:
                    continue
                last_found = unit.epoch
                self._read_ahead.append((unit, number))
                yield item

    def epoch_items(self, epoch: int) -> Iterator[Any]:
        """Yield the items of one epoch from its beginning."""
        for unit in self._epoch_units(_start_state(epoch)):
            yield from (item for item in self._items(unit, 0) if item is not None)

    def take(self) -> list[int]:
        """Return the epoch, window, block, and index within the block, of the item."""
        unit, done = self._last = self._read_ahead.popleft()
        return [unit.epoch, unit.window, unit.block, unit.places[done - 1]]

    def state_dict(self) -> State:
        """As in `Cursor`."""
        state = self._state
        if self._last is not None:
            unit, done = self._last
            if unit.piece >= 0:
                state = {**state, "piece": unit.piece, "done": done}
            else:
                at = [unit.epoch, unit.window, unit.block]
                state = {"pending": [], "piece": 0, "start": state["start"], "at": at, "done": done}
        return {**state, "files": self._files}

    def load_state_dict(self, state: State) -> None:
        """As in `Cursor`."""
        if "at" not in state:
            raise UserError("the checkpoint's data position was written by an earlier version; start the run again")
        if state.get("files", self._files) != self._files:
            raise UserError(
                f"the files of {self._source.name} are not those that the checkpoint was made with (names or lengths "
                "differ), so its position is unknown; restore them, or start a new run"
            )
        self._state, self._last = state, None

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """As in `Cursor`; the state does not depend on `num_readers`."""
        del num_readers
        until = max(tuple(state["at"]) for state in states)
        start = self._next_round(until, states[0]["start"], len(states))
        grouped: dict[tuple[int, ...], list[int]] = {}
        for epoch, window, block, place in more:
            grouped.setdefault((epoch, window, block), []).append(place)
        pieces: list[list[Any]] = [[*key, places] for key, places in sorted(grouped.items())]
        for rank, state in enumerate(states):
            reader = BlockCursor(self._source, self._split, rank, len(states))
            reader.load_state_dict(state)
            for unit, done in reader._units():
                if unit.piece < 0 and (unit.epoch, unit.window, unit.block) >= start:
                    break
                if left := unit.places[done:]:
                    pieces.append([unit.epoch, unit.window, unit.block, _written(left)])
        return _start_state(*start, pieces)

    @cached_property
    def _files(self) -> str:
        return hashlib.sha256(self._source.fingerprint().encode()).hexdigest()[:16]

    def _next_round(self, until: tuple[int, ...], start: Sequence[int], num_readers: int) -> tuple[int, int, int]:
        """Return the end of the round of the furthest reader; no reader has read beyond it."""
        epoch, window, block = until
        first = start[2] if list(start[:2]) == [epoch, window] else 0
        end = first + ((block - first) // num_readers + 1) * num_readers
        if end <= len(self._source.blocks(self._split, epoch, window)):
            return epoch, window, end
        is_last = window + 1 == self._source.num_windows(self._split)
        return (epoch + 1, 0, 0) if is_last else (epoch, window + 1, 0)

    def _units(self) -> Iterator[tuple[_Unit, int]]:
        """Yield this reader's units from its position on, each with the number of rows already read."""
        done = self._state["done"]
        for unit in chain(self._pending_units(self._state), self._own_units(self._state)):
            yield unit, done
            done = 0

    def _pending_units(self, state: State) -> Iterator[_Unit]:
        before = 0
        for index, (epoch, window, block, written) in enumerate(state["pending"]):
            places = range(*written["range"]) if isinstance(written, dict) else written
            if index >= state["piece"]:
                yield _Unit(epoch, window, block, places[self._share(before)], index)
            before += len(places)

    def _own_units(self, state: State) -> Iterator[_Unit]:
        is_empty = state["at"][1:] == [0, 0]
        while True:
            for unit in self._epoch_units(state):
                is_empty = False
                yield unit
            if is_empty:
                self._nothing_to_read()
            if self._split != "train":
                return
            state, is_empty = _start_state(state["at"][0] + 1), True

    def _epoch_units(self, state: State) -> Iterator[_Unit]:
        """Yield the units of one epoch from a position on."""
        epoch, window, at = state["at"]
        for number in range(window, self._source.num_windows(self._split)):
            first = state["start"][2] if list(state["start"][:2]) == [epoch, number] else 0
            for unit in self._window_units(epoch, number, first):
                if unit.places and (number > window or unit.block >= at):
                    yield unit

    def _window_units(self, epoch: int, window: int, first: int) -> Iterator[_Unit]:
        blocks = self._source.blocks(self._split, epoch, window)
        whole = first + (len(blocks) - first) // self._world_size * self._world_size
        for index in range(first + self._rank, whole, self._world_size):
            yield _Unit(epoch, window, index, range(blocks[index][2] - blocks[index][1]), -1)
        before = window  # so that the additional row goes to different readers
        for index in range(whole, len(blocks)):
            places = range(blocks[index][2] - blocks[index][1])
            yield _Unit(epoch, window, index, places[self._share(before)], -1)
            before += len(places)

    def _share(self, num_before: int) -> slice:
        return slice((self._rank - num_before) % self._world_size, None, self._world_size)

    def _items(self, unit: _Unit, done: int) -> Iterator[Any]:
        if not unit.places[done:]:
            return iter(())
        block = self._source.blocks(self._split, unit.epoch, unit.window)[unit.block]
        rows = self._source.rows(self._split, unit.epoch, block)
        return self._source.read(block[0], [rows[place] for place in unit.places[done:]])


def _start_state(epoch: int = 0, window: int = 0, block: int = 0, pending: Sequence[Sequence[Any]] = ()) -> State:
    """Return the state of every reader of a run that starts here, after the remainders of other readers."""
    at = [epoch, window, block]
    return {"pending": [list(piece) for piece in pending], "piece": 0, "start": at, "at": at, "done": 0}


def _written(places: Sequence[int]) -> Any:
    """Encode positions within a block; compact if evenly spaced."""
    return {"range": [places.start, places.stop, places.step]} if isinstance(places, range) else list(places)


def _from(first: int) -> Callable[[range], range]:
    """Return a function that drops the indices before `first`."""
    return lambda share: share[max(0, -((share.start - first) // share.step)) :]

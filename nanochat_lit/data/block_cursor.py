"""Position in a block source: read order, progress, and distribution over readers.

    epoch    |window of files          |window of files          |
    blocks   |file 2, rows 0 to 1024   |file 0, rows 1024 to 2048| ...     shuffled by seed and epoch
    rows     |701, 13, 88, ...                                            shuffled within the block

The blocks of a window are assigned to the readers in rounds; the remaining blocks, too few for a round, are divided by
records. A position is (epoch, window, block, row), so a reader can seek to it, and another number of readers can share
the remaining data (see `BlockCursor.merge`).
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.cursor import State, nothing_to_read

Block = tuple[int, int, int]
"""File, first row, last row + 1."""
MAX_EMPTY_EPOCHS = 10
"""Number of consecutive null records after which a reader gives up."""


class BlockSource(Protocol):
    """Documents in blocks whose order is known without reading them."""

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    def num_windows(self, split: Any) -> int:
        """Return the number of windows of an epoch."""
        ...

    def blocks(self, split: Any, epoch: int, window: int) -> list[Block]:
        """Return the blocks of a window in the order of the epoch."""
        ...

    def rows(self, split: Any, epoch: int, window: int, block: Block) -> Sequence[int]:
        """Return the row indices of a block in the order of the epoch."""
        ...

    def read(self, file: int, rows: Sequence[int]) -> Iterator[Any]:
        """Yield the items of rows of one block; None for a row without an item."""
        ...

    def fingerprint(self) -> str:
        """Digest that changes if a position would refer to another row."""
        ...


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows of one block assigned to one reader."""

    epoch: int
    window: int
    block: int
    places: Sequence[int]
    piece: int
    """Index among the remainders of other readers; -1 if it is not one."""


def start_state(epoch: int = 0, window: int = 0, block: int = 0, pending: Sequence[Sequence[Any]] = ()) -> State:
    """Return the state of every reader of a run that starts here, after the remainders of other readers."""
    at = [epoch, window, block]
    return {"pending": [list(piece) for piece in pending], "piece": 0, "start": at, "at": at, "done": 0}


class BlockCursor:
    """Iterates over the items of a block source over epochs, for one of several readers, and tracks the position.

    The caller increments `num_taken` when an item enters its buffer; items that were only read ahead are read again
    after a resume.
    """

    def __init__(self, source: BlockSource, split: str, rank: int, world_size: int) -> None:
        self._source = source
        self._split = split
        self._rank = rank
        self._world_size = world_size
        self._state = start_state()
        self._read_ahead: deque[tuple[_Unit, int]] = deque()  # items yielded but not yet taken
        self._last: tuple[_Unit, int] | None = None
        self._num_settled = 0
        self._fingerprint: str | None = None
        self.num_taken = 0

    def __iter__(self) -> Iterator[Any]:
        last_found = self._state["at"][0]
        for unit, done in self._units():
            if unit.epoch > last_found + MAX_EMPTY_EPOCHS:
                nothing_to_read(self._split, self._rank, self._world_size)
            for number, item in enumerate(self._items(unit, done), start=done + 1):
                if item is None:
                    continue
                last_found = unit.epoch
                self._settle()
                self._read_ahead.append((unit, number))
                yield item

    def epoch_items(self, epoch: int) -> Iterator[Any]:
        """Yield the items of one epoch from its beginning."""
        for unit in self._epoch_units(start_state(epoch)):
            yield from (item for item in self._items(unit, 0) if item is not None)

    def state_dict(self) -> State:
        """Return the position after the last taken item as numbers and lists."""
        self._settle()
        state = self._state
        if self._last is not None:
            unit, done = self._last
            if unit.piece >= 0:
                state = {**state, "piece": unit.piece, "done": done}
            else:
                at = [unit.epoch, unit.window, unit.block]
                state = {"pending": [], "piece": 0, "start": state["start"], "at": at, "done": done}
        return {**state, "files": self._files()}

    def load_state_dict(self, state: State) -> None:
        """Start the next iteration at the position `state`.

        Raises:
            UserError: If the files differ from those of the state.
        """
        if "at" not in state:
            raise UserError("the checkpoint's data position was written by an earlier version; start the run again")
        if state.get("files", self._files()) != self._files():
            raise UserError(
                f"the files of {self._source.name} are not those that the checkpoint was made with (names or lengths "
                "differ), so its position is unknown; restore them, or start a new run"
            )
        self._state, self._last = state, None

    def last_place(self) -> list[int]:
        """Return the position of the last taken item: epoch, window, block, index within the block."""
        self._settle()
        assert self._last is not None, "no item has been taken"
        unit, done = self._last
        return [unit.epoch, unit.window, unit.block, unit.places[done - 1]]

    def read_places(self, places: Sequence[Sequence[int]]) -> list[Any]:
        """Return the items at positions from `last_place`, in the given order; opens each block once."""
        wanted: dict[tuple[int, ...], list[int]] = {}
        for epoch, window, block, place in dict.fromkeys(map(tuple, places)):
            wanted.setdefault((epoch, window, block), []).append(place)
        found: dict[tuple[int, ...], Any] = {}
        for (epoch, window, block), inside in wanted.items():
            for place, item in zip(inside, self._read(epoch, window, block, inside), strict=True):
                found[epoch, window, block, place] = item
        return [found[tuple(place)] for place in places]

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """Return a state from which any number of readers continue with exactly the remaining items.

        Args:
            states: States of all readers, which started together.
            num_readers: Number of continuing readers; the state does not depend on it.
            more: Positions of items that were taken but not used, to be read again.
        """
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
        return start_state(*start, pieces)

    def _files(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = hashlib.sha256(self._source.fingerprint().encode()).hexdigest()[:16]
        return self._fingerprint

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
                nothing_to_read(self._split, self._rank, self._world_size)
            if self._split != "train":
                return
            state, is_empty = start_state(state["at"][0] + 1), True

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
        """Return this reader's share of the rows after `num_before` rows were distributed."""
        return slice((self._rank - num_before) % self._world_size, None, self._world_size)

    def _items(self, unit: _Unit, done: int) -> Iterator[Any]:
        return self._read(unit.epoch, unit.window, unit.block, unit.places[done:])

    def _read(self, epoch: int, window: int, block: int, places: Sequence[int]) -> Iterator[Any]:
        if not places:
            return iter(())
        chosen = self._source.blocks(self._split, epoch, window)[block]
        rows = self._source.rows(self._split, epoch, window, chosen)
        return self._source.read(chosen[0], [rows[place] for place in places])

    def _settle(self) -> None:
        while self._num_settled < self.num_taken and self._read_ahead:
            self._last = self._read_ahead.popleft()
            self._num_settled += 1


def _written(places: Sequence[int]) -> Any:
    """Encode positions within a block; compact if evenly spaced."""
    return {"range": [places.start, places.stop, places.step]} if isinstance(places, range) else list(places)

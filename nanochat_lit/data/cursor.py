"""Cursors: resumable positions of readers in a source."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol, runtime_checkable

from nanochat_lit.common.errors import UserError

State = dict[str, Any]

_NO_END = 2**60
"""Larger than the number of items of any epoch."""


@runtime_checkable
class Source(Protocol):
    """Documents (strings) or conversations (dicts) by split and epoch; ranks read disjoint items."""

    def iterate(self, split: Any, epoch: int, rank: int, world_size: int) -> Iterator[Any]:
        """Yield every `world_size`-th item of one epoch, starting with item `rank`; may be endless.

        The order of an epoch must be deterministic, so that a run can resume at its position.
        """
        ...


class Cursor(Protocol):
    """Interface of both kinds of cursors."""

    num_taken: int

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the items from the position on."""
        ...

    def state_dict(self) -> State:
        """Return the position after the last taken item."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Start the next iteration at the position `state`."""
        ...

    def last_place(self) -> list[int]:
        """Return the position of the last taken item."""
        ...

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """Return the position from which `num_readers` readers continue.

        Args:
            states: States of all readers, which started together.
            num_readers: Number of continuing readers.
            more: Positions of items that were taken but not used, to be read again.
        """
        ...


class ItemCursor:
    """Cursor over a sequential source, whose order depends on the epoch.

    A position is (epoch, item index); resuming reads up to it again. Readers take turns from `start` on; items left by
    previous readers before it are distributed again:

        item     0  1  2  3  4  5  6  7  8  9 ...
        reader   .  1  .  0  .  1 |0  1  0  1       left by three previous readers: 1, 3, 5; start: 6; two readers now

    The caller increments `num_taken` when an item enters its buffer; items that were only read ahead are read again
    after a resume.
    """

    def __init__(self, source: Source, split: str, rank: int, world_size: int) -> None:
        self._source = source
        self._split = split
        self._rank = rank
        self._world_size = world_size
        self._state: State = {"start": [0, 0], "at": [0, 0], "left": []}
        self._read_ahead: deque[list[int]] = deque()
        self._last: list[int] | None = None
        self._num_settled = 0
        self.num_taken = 0

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._state["at"]
        while True:
            is_empty = [epoch, first] >= self._state["start"] and first == 0
            for number, item in self._epoch_items(epoch, first):
                is_empty = False
                self._settle()
                self._read_ahead.append([epoch, number])
                yield item
            if is_empty:
                nothing_to_read(self._split, self._rank, self._world_size)
            if self._split != "train":
                return
            epoch, first = epoch + 1, 0

    def state_dict(self) -> State:
        """Return the readers' start, the position after the last taken item, and items left by previous readers."""
        self._settle()
        at = self._state["at"] if self._last is None else [self._last[0], self._last[1] + 1]
        return {**self._state, "at": at, "left": [] if at >= self._state["start"] else self._state["left"]}

    def load_state_dict(self, state: State) -> None:
        """Start the next iteration at the position `state`.

        Raises:
            UserError: If it is not a position of such a source.
        """
        if len(state.get("at", ())) != 2:
            raise UserError(
                "the checkpoint's data position was written by an earlier version or with another kind of source; "
                "start the run again"
            )
        self._state, self._last = state, None

    def last_place(self) -> list[int]:
        """Return the epoch and index of the last taken item."""
        self._settle()
        assert self._last is not None, "no item has been taken"
        return self._last

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """Return a state from which any number of readers continue with exactly the remaining items."""
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

    def _settle(self) -> None:
        while self._num_settled < self.num_taken and self._read_ahead:
            self._last = self._read_ahead.popleft()
            self._num_settled += 1


def _from(first: int) -> Callable[[range], range]:
    """Return a function that drops the indices before `first`."""
    return lambda share: share[max(0, -((share.start - first) // share.step)) :]


def nothing_to_read(split: str, rank: int, world_size: int) -> NoReturn:
    """Raise UserError for a reader without items."""
    raise UserError(
        f"the {split} split has no item for reader {rank} of {world_size} "
        "(processes times DataLoader workers); give more documents or use fewer readers"
    )

"""Where a reader is in its documents, to be written down and returned to."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NoReturn, Protocol

from nanochat_lit.common.errors import UserError

State = dict[str, Any]


class Repeatable(Protocol):
    """Items that can be read again from their beginning."""

    def iterate(self, split: Any, epoch: int, rank: int, world_size: int) -> Iterator[Any]:
        """The items of one epoch that belong to `rank`."""
        ...


class Cursor(Protocol):
    """What the two kinds share."""

    num_taken: int

    def __iter__(self) -> Iterator[Any]:
        """The items, from the place on."""
        ...

    def state_dict(self) -> State:
        """The place after the last item that was taken."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Begin the next iteration at the place of `state`."""
        ...

    def last_place(self) -> list[int]:
        """Where the last item came from that was taken; empty if the source has no places."""
        ...

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """The place from which `num_readers` readers go on, by those of all readers so far.

        Args:
            states: Of all readers, which began together.
            num_readers: Those that go on.
            more: Places of items that were taken and not used, to be read again.
        """
        ...


class ItemCursor:
    """Items of a source that only gives them one after the other: the place is a count, and coming back means reading.

    `num_taken` is advanced by the reader, when an item has gone into its buffer: items that were only read ahead are
    read again after a resume.
    """

    def __init__(self, source: Repeatable, split: str, rank: int, world_size: int) -> None:
        self._source = source
        self._split = split
        self._rank = rank
        self._world_size = world_size
        self._start_epoch = 0
        self._start_item = 0
        self._ends: list[int] = []  # items after which epochs ended that nobody has passed yet
        self.num_taken = 0

    def __iter__(self) -> Iterator[Any]:
        epoch = self._start_epoch
        num_read = 0
        while True:
            items = self._source.iterate(self._split, epoch, self._rank, self._world_size)
            first = next(items, None)
            if first is None:
                nothing_to_read(self._split, self._rank, self._world_size)
            skip = self._start_item if epoch == self._start_epoch else 0
            num_read -= skip
            for index, item in enumerate(chain([first], items)):
                num_read += 1
                if index >= skip:
                    yield item
            if self._split != "train":
                return
            self._ends.append(num_read)
            epoch += 1

    def state_dict(self) -> State:
        """The epoch, and how many of this reader's items of it have been taken."""
        passed = [end for end in self._ends if end <= self.num_taken]
        if passed:
            return {"epoch": self._start_epoch + len(passed), "item": self.num_taken - passed[-1]}
        return {"epoch": self._start_epoch, "item": self._start_item + self.num_taken}

    def load_state_dict(self, state: State) -> None:
        """Begin the next iteration at the place of `state`."""
        self._start_epoch, self._start_item = state["epoch"], state["item"]

    def last_place(self) -> list[int]:
        """Nothing: items have no places."""
        return []

    def merge(self, states: Sequence[State], num_readers: int, more: Sequence[Sequence[int]] = ()) -> State:
        """Where the furthest reader was, as a place of `num_readers` readers; what others had yet to read is skipped."""
        assert not more, "items have no places"
        epoch = max(state["epoch"] for state in states)
        furthest = max(state["item"] for state in states if state["epoch"] == epoch)
        return {"epoch": epoch, "item": -(-furthest * len(states) // num_readers)}


def nothing_to_read(split: str, rank: int, world_size: int) -> NoReturn:
    """Raise the error of a reader whose share is empty."""
    raise UserError(
        f"the {split} split has no item for reader {rank} of {world_size} "
        "(processes times DataLoader workers); give more documents or use fewer readers"
    )

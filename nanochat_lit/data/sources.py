"""Anything that yields documents, as a source: files, lists, generators, or an object with `iterate`."""

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.cursor import Cursor, ItemCursor, Source
from nanochat_lit.data.shards import VALIDATION_FRACTION, Column, FileSource


class Items(Protocol):
    """Anything with a length and places."""

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The item at this place."""
        ...


class MemorySource:
    """A list of items; the last percent is the validation split, as with a single file."""

    def __init__(self, items: Sequence[Any], seed: int = 0) -> None:
        self.items = items
        self.seed = seed

    def iterate(self, split: str, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The items of one epoch; 'train' in an order drawn from the seed and the epoch."""
        num_train = len(self.items) - max(1, int(len(self.items) * VALIDATION_FRACTION))
        ranges = {"train": range(num_train), "val": range(num_train, len(self.items)), "all": range(len(self.items))}
        if split not in ranges:
            raise UserError(f"split is {split!r}; use one of {', '.join(ranges)}")
        order = list(ranges[split])
        if split == "train":
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return (self.items[index] for index in order[rank::world_size])


class SplitSource:
    """Two lists of items, one to train on and one to validate on; any object with a length and places is a list."""

    def __init__(self, train: "Items", val: "Items", seed: int = 0) -> None:
        self.splits = {"train": train, "val": val}
        self.seed = seed

    def iterate(self, split: str, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The items of one epoch; 'train' in an order drawn from the seed and the epoch."""
        if split not in self.splits:
            raise UserError(f"split is {split!r}; use one of {', '.join(self.splits)}")
        items = self.splits[split]
        order = array("q", range(len(items)))
        if split == "train":
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return (items[index] for index in order[rank::world_size])


class CallableSource:
    """A function that makes an iterator, such as `lambda: documents("train", seed)`.

    It is called once an epoch, so an endless generator is one epoch. It knows no splits: give each split its own.
    """

    def __init__(self, function: Callable[[], Iterable[Any]]) -> None:
        self.function = function

    def iterate(self, split: str, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Every `world_size`-th item of a fresh iterator, whatever the split and epoch."""
        del split, epoch
        return islice(iter(self.function()), rank, None, world_size)


SourceLike = Source | Callable[[], Iterable[Any]] | Sequence[Any] | str | Path


def as_source(items: SourceLike, column: Column = "text", seed: int = 0) -> Source:
    """Make a source of a path, a source, a function without arguments, or a list.

    Args:
        items: What to read. A source is taken as it is.
        column: 'text' or 'messages', for a path.
        seed: Order of the training epochs, for a path or a list.

    Raises:
        UserError: For anything else, above all an iterator, which could be read only once.
    """
    if isinstance(items, (str, Path)):
        return FileSource(items, column, seed)
    if isinstance(items, Source):
        return items
    if callable(items):
        return CallableSource(items)
    if isinstance(items, Sequence):
        if not items:
            raise UserError("the list of items is empty; give at least one")
        return MemorySource(items, seed)
    raise UserError(
        f"cannot read from {type(items).__name__}; give a path, a list, a function that makes an iterator, "
        "or an object with iterate(split, epoch, rank, world_size)"
    )


def make_cursor(source: Source, split: str, rank: int, world_size: int) -> Cursor:
    """A reader of a source that knows its place: by block where the source has blocks, else by the number of the item."""
    make = getattr(source, "cursor", None)
    return ItemCursor(source, split, rank, world_size) if make is None else make(split, rank, world_size)

"""Conversion of files, lists, functions and objects with `iterate` to sources."""

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
    """A sequence with a length and indices."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return an item."""
        ...


class MemorySource:
    """A list of items; the last 1% is the validation split, as with a single file."""

    def __init__(self, items: Sequence[Any], seed: int = 0) -> None:
        self.items = items
        self.seed = seed

    def iterate(self, split: str, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the items of one epoch; 'train' is shuffled by seed and epoch."""
        num_train = len(self.items) - max(1, int(len(self.items) * VALIDATION_FRACTION))
        ranges = {"train": range(num_train), "val": range(num_train, len(self.items)), "all": range(len(self.items))}
        if split not in ranges:
            raise UserError(f"split is {split!r}; use one of {', '.join(ranges)}")
        order = list(ranges[split])
        if split == "train":
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return (self.items[index] for index in order[rank::world_size])


class SplitSource:
    """Separate training and validation sequences."""

    def __init__(self, train: "Items", val: "Items", seed: int = 0) -> None:
        self.splits = {"train": train, "val": val}
        self.seed = seed

    def iterate(self, split: str, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the items of one epoch; 'train' is shuffled by seed and epoch."""
        if split not in self.splits:
            raise UserError(f"split is {split!r}; use one of {', '.join(self.splits)}")
        items = self.splits[split]
        order = array("q", range(len(items)))
        if split == "train":
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return (items[index] for index in order[rank::world_size])


class CallableSource:
    """A function that returns an iterator, such as `lambda: documents("train", seed)`.

    It is called once per epoch, so an endless generator is a single epoch. It ignores splits: use one function per
    split.
    """

    def __init__(self, function: Callable[[], Iterable[Any]]) -> None:
        self.function = function

    def iterate(self, split: str, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield every `world_size`-th item of a new iterator, regardless of split and epoch."""
        del split, epoch
        return islice(iter(self.function()), rank, None, world_size)


SourceLike = Source | Callable[[], Iterable[Any]] | Sequence[Any] | str | Path


def as_source(items: SourceLike, column: Column = "text", seed: int = 0) -> Source:
    """Convert a path, a source, a function without arguments, or a list to a source.

    Args:
        items: Items to read; a source is returned unchanged.
        column: 'text' or 'messages', for a path.
        seed: Seed of the order of training epochs, for a path or a list.

    Raises:
        UserError: For anything else, such as an iterator, which can be read only once.
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
        f"cannot read from {type(items).__name__}; give a path, a list, a function that returns an iterator, "
        "or an object with iterate(split, epoch, rank, world_size)"
    )


def make_cursor(source: Source, split: str, rank: int, world_size: int) -> Cursor:
    """Return a cursor of a source: by block if the source has blocks, else by item index."""
    make = getattr(source, "cursor", None)
    return ItemCursor(source, split, rank, world_size) if make is None else make(split, rank, world_size)

"""Where the documents come from that lie in a packing buffer, so that other readers can read them again."""

from collections.abc import Sequence
from typing import Any

import torch

from nanochat_lit.data.packing import FitBuffer

_PRUNE_AT = 20_000
_NOTHING = -1


class BufferedPlaces:
    """Places of documents by the numbers under which their pieces have arrived in the buffer.

    A document that is split has several pieces; once one of them has been used, its position is not given again.
    """

    def __init__(self, buffer: FitBuffer[Any]) -> None:
        self._buffer = buffer
        self._entries: list[tuple[int, list[int]]] = []  # first number, place
        self._counts: dict[int, int] = {}  # of pieces, by the first number, for documents of before a resume

    def add(self, place: Sequence[int]) -> None:
        """Take note that the next document to arrive comes from here."""
        if len(self._entries) >= _PRUNE_AT:
            kept = self._whole()
            self._entries = [(first, place) for first, _, place in kept]
            self._counts = {first: count for first, count, _ in kept}
        self._entries.append((self._buffer.num_added, list(place)))

    def state(self) -> torch.Tensor:
        """First number, number of pieces and place of each document of which nothing has been used; a row each.

        Places of different sources of a mixture differ in length: shorter ones end in _NOTHING.
        """
        rows = [[first, count, *place] for first, count, place in self._whole()]
        longest = max(map(len, rows), default=0)
        return torch.tensor([row + [_NOTHING] * (longest - len(row)) for row in rows], dtype=torch.int64)

    def load(self, state: torch.Tensor) -> None:
        """Become what gave `state`."""
        self._entries = [(row[0], _place(row)) for row in state.tolist()]
        self._counts = {first: count for first, count, *_ in state.tolist()}

    def _whole(self) -> list[tuple[int, int, list[int]]]:
        if not self._entries:
            return []
        there = set(self._buffer.numbers())
        following = [first for first, _ in self._entries[1:]] + [self._buffer.num_added]
        found = []
        for (first, place), after in zip(self._entries, following, strict=True):
            count = self._counts.get(first, after - first)
            if count and all(number in there for number in range(first, first + count)):
                found.append((first, count, place))
        return found


def places_of(states: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The places in the states of streams, of all readers."""
    return [_place(row) for state in states if state["places"].numel() for row in state["places"].tolist()]


def _place(row: Sequence[int]) -> list[int]:
    return [number for number in row[2:] if number != _NOTHING]

"""A resumable loader of a stream's batches, optionally with worker processes."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nanochat_lit.data.stream import Batch, PackedStream

ENDLESS = 10**9
"""Length that an endless loader reports. Without a length Lightning prefetches one batch, and the position would be off
by one."""
PREFETCH = 8
"""Prefetched batches per worker; enough to cover the reading of a row group."""
RECEIVED = 4
"""Prefetched batches of the training process."""
SNAPSHOT_EVERY = 32
"""Batches between state snapshots of a worker; after a resume, fewer than this many batches are read again."""
_FAREWELL_S = 10.0
Item = TypeVar("Item")


class ResumableLoader:
    """An endless, resumable loader of a stream's train split; with 0 workers it reads in this process.

    Workers take turns, so the order of batches depends on their number but not on their speed. The position counts the
    returned batches; prefetched batches are read again after a resume. `asked_at_s` is the time of the last request,
    `waited_s` the total time spent waiting for batches.
    """

    def __init__(self, stream: PackedStream, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.stream = stream
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._readers: list[dict[str, Any]] = [{"state": {}, "since": 0} for _ in range(self.num_readers)]
        self._used = [(0, 0)] * self.num_readers
        self._next_reader = 0
        self._started = False
        self.asked_at_s = self.waited_s = 0.0

    @property
    def num_readers(self) -> int:
        """Number of reading processes of this rank."""
        return max(1, self.num_workers)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator: workers must start, and the DataLoader must draw its seed, now rather than at the first
        # batch.
        self._started = True
        if self.num_workers == 0:
            if state := self._readers[0]["state"]:
                self.stream.load_state_dict(state)
            return self._timed(iter(DataLoader(self.stream, batch_size=None, pin_memory=self.pin_memory)))
        reader = _Reader(self.stream, self._readers, self._next_reader)
        loader = DataLoader(reader, batch_size=None, num_workers=self.num_workers, prefetch_factor=PREFETCH)
        return self._timed(self._counted(read_ahead(map(self._opened, iter(loader)), RECEIVED)))

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        self.asked_at_s = time.perf_counter()
        for batch in batches:
            self.waited_s += time.perf_counter() - self.asked_at_s
            yield batch
            self.asked_at_s = time.perf_counter()

    def _opened(self, load: "_Loaded") -> tuple["_Loaded", Batch]:
        """Convert a received batch to tensors, in the receiving thread."""
        batch = self.stream.batch_of(load.rows)
        return load, {name: tensor.pin_memory() for name, tensor in batch.items()} if self.pin_memory else batch

    def _counted(self, loads: Iterator[tuple["_Loaded", Batch]]) -> Iterator[Batch]:
        for load, batch in loads:
            reader = self._readers[self._next_reader]
            if load.snapshot is None:
                reader["since"] += 1
            else:
                reader["state"], reader["since"] = load.snapshot, 0
            self._used[self._next_reader] = load.used
            self._next_reader = (self._next_reader + 1) % self.num_workers
            yield batch

    @property
    def lost(self) -> float:
        """Fraction of this rank's tokens that packing has discarded, including before a resume."""
        if self.num_workers == 0:
            return self.stream.counts.lost
        used, cropped = (sum(column) for column in zip(*self._used, strict=True))
        return cropped / max(1, used + cropped)

    def position(self) -> dict[str, Any]:
        """Return the position after the last returned batch, for a checkpoint."""
        if self.num_workers == 0 and self._started:
            readers = [{"state": self.stream.state_dict(), "since": 0}]
        else:
            readers = [dict(reader) for reader in self._readers]
        return {"readers": readers, "next_reader": self._next_reader}

    def seek(self, position: dict[str, Any]) -> None:
        """Start the next iteration at a position of a loader with the same stream and number of readers."""
        assert len(position["readers"]) == self.num_readers, "use `merged` for another number of readers"
        self._readers = [dict(reader) for reader in position["readers"]]
        self._next_reader = position["next_reader"]
        self._started = False


def merged(stream: PackedStream, positions: list[dict[str, Any]], num_readers: int, world_size: int) -> dict[str, Any]:
    """Return the position from which another number of ranks or workers continues with the unused data.

    No document is repeated. None is skipped, except partly used split documents, at most one buffer per reader. With
    workers, the batches since their last snapshot are read again.
    """
    states = [reader["state"] for position in positions for reader in position["readers"]]
    state = stream.merge(states, num_readers * world_size) if all(states) else {}
    return {"readers": [{"state": state, "since": 0} for _ in range(num_readers)], "next_reader": 0}


def read_ahead(items: Iterator[Item], size: int) -> Iterator[Item]:
    """Yield items, up to `size` of which are prefetched in a thread that ends with this generator.

    Errors of the items are raised in their place.
    """
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    free = threading.Semaphore(size)
    is_closed = threading.Event()

    def read() -> None:
        error = None
        while error is None and free.acquire() and not is_closed.is_set():
            try:
                item = next(items)
            except BaseException as raised:  # noqa: BLE001 - it belongs to the thread that asks for the item
                item, error = None, raised
            results.put((item, error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            item, error = results.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            free.release()
            yield item
    finally:
        is_closed.set()
        free.release()
        thread.join(_FAREWELL_S)


@dataclass
class _Loaded:
    """Message of a worker: a batch, and occasionally its state, whose tensors are in shared memory.

    The sequences are sent through the pipe with few bytes per token, which is faster than allocating shared memory. A
    thread of the receiving process converts them to tensors, page-locked for a GPU.
    """

    rows: np.ndarray
    """Result of the stream's `rows`."""
    snapshot: dict[str, Any] | None
    """State of the stream."""
    used: tuple[int, int]
    """Tokens used and cropped so far by the reader."""


class _Reader(IterableDataset[_Loaded]):
    """Yields a worker's share of the batches, occasionally with its state."""

    def __init__(self, stream: PackedStream, readers: list[dict[str, Any]], first: int) -> None:
        self.stream = stream
        self.readers = readers
        self.first = first

    def __iter__(self) -> Iterator[_Loaded]:
        worker = get_worker_info()
        assert worker is not None
        # The DataLoader requests worker 0 first, which reads for the reader whose turn it is.
        self.stream.reader_shift = self.first
        reader = self.readers[(worker.id + self.first) % worker.num_workers]
        if state := reader["state"]:
            self.stream.load_state_dict(state)
        batches = self.stream.rows()
        for _ in range(reader["since"]):
            next(batches)
        for count, rows in enumerate(batches, start=reader["since"] + 1):
            counts = self.stream.counts
            yield _Loaded(
                rows=rows,
                snapshot=self.stream.state_dict() if count % SNAPSHOT_EVERY == 0 else None,
                used=(counts.used, counts.cropped),
            )

"""Batches of a stream, read ahead by worker processes if wanted, from a place that can be written down and returned to."""

import pickle
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nanochat_lit.data.chat_stream import ChatStream
from nanochat_lit.data.pretrain_stream import Batch, PretrainStream

Stream = PretrainStream | ChatStream

ENDLESS = 10**9
"""Length that an endless loader reports. Without a length Lightning fetches one batch ahead, and the place would be off by one."""

PREFETCH = 8
"""Batches that each worker has ready: enough to go on while another row group is read."""

RECEIVED = 4
"""Batches that the training process has ready."""

SNAPSHOT_EVERY = 32
"""Batches after which a worker sends its state along; to return to a place, fewer than these are read again."""


Item = TypeVar("Item")

_LOOK_S = 0.1
"""How often a thread with nothing to do looks whether it is still wanted."""
_FAREWELL_S = 10.0


class ReadAhead(Iterator[Item], Generic[Item]):
    """Reads up to `size` items of an iterator ahead, in a thread that ends with this object.

    Args:
        items: What to read; only the thread touches it from now on. An error in it comes out where its item would.
        size: Items that may wait.
        change: What the thread makes of each item.
    """

    def __init__(self, items: Iterator[Any], size: int, change: Callable[[Any], Item]) -> None:
        self._waiting: queue.Queue[tuple[str, Any]] = queue.Queue(size)
        stop = threading.Event()
        # the thread holds no reference to this object, so that dropping it is enough
        thread = threading.Thread(target=_read, args=(items, change, self._waiting, stop), daemon=True)
        self._close = weakref.finalize(self, _end, thread, stop)
        self._ended: BaseException | None = None
        thread.start()

    def __next__(self) -> Item:
        if self._ended is not None:
            raise self._ended
        kind, item = self._waiting.get()
        if kind == "item":
            return item
        self._ended = item
        self._close()
        raise item

    def close(self) -> None:
        """End the thread, and what it reads from; nothing can be read any more."""
        self._ended = StopIteration()
        self._close()


def _read(
    items: Iterator[Any], change: Callable[[Any], Any], waiting: "queue.Queue[tuple[str, Any]]", stop: threading.Event
) -> None:
    while not stop.is_set():
        try:
            entry = ("item", change(next(items)))
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that asks for the item
            entry = ("end", error)
        while not stop.is_set():
            try:
                waiting.put(entry, timeout=_LOOK_S)
                break
            except queue.Full:
                continue
        if entry[0] == "end":
            return


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join(_FAREWELL_S)


class ResumableLoader:
    """An endless loader that knows its place.

    Workers take turns, so the order of the batches depends on their number, not on their speed. The place counts the
    batches given out; what workers have read ahead is read again after a resume.

    Args:
        stream: The train split of a stream.
        num_workers: Reading processes; 0 reads in this one.
        pin_memory: Copy batches into page-locked memory, from which a GPU fetches faster.

    Attributes:
        asked_at_s: When the last batch was asked for, by `time.perf_counter`.
        waited_s: Seconds that all batches so far took to come.
    """

    def __init__(self, stream: Stream, num_workers: int = 0, pin_memory: bool = False) -> None:
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
        """Processes that read, of this rank."""
        return max(1, self.num_workers)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator: workers start, and the DataLoader draws from torch's generator, now and not at the first batch.
        self._started = True
        if self.num_workers == 0:
            if state := self._readers[0]["state"]:
                self.stream.load_state_dict(state)
            return _Timed(self, iter(DataLoader(self.stream, batch_size=None, pin_memory=self.pin_memory)))
        loader = DataLoader(
            _Reader(self.stream, self._readers, self._next_reader),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            prefetch_factor=PREFETCH,
        )
        return _Timed(self, self._counted(ReadAhead(iter(loader), RECEIVED, self._opened)))

    def _opened(self, load: "_Loaded") -> "_Loaded":
        """In the thread that receives: the batch as tensors."""
        batch = self.stream.batch_of(load.rows)
        return replace(
            load, rows={name: tensor.pin_memory() for name, tensor in batch.items()} if self.pin_memory else batch
        )

    def _counted(self, loads: Iterator["_Loaded"]) -> Iterator[Batch]:
        for load in loads:
            reader = self._readers[self._next_reader]
            if load.snapshot is None:
                reader["since"] += 1
            else:
                reader["state"], reader["since"] = load.snapshot, 0
            self._used[self._next_reader] = load.used
            self._next_reader = (self._next_reader + 1) % self.num_workers
            yield load.rows

    @property
    def lost(self) -> float:
        """Share of the tokens read so far, of this rank and of the run before a resume, that packing has thrown away."""
        if self.num_workers == 0:
            return self.stream.counts.lost
        used, cropped = (sum(column) for column in zip(*self._used, strict=True))
        return cropped / max(1, used + cropped)

    def position(self) -> dict[str, Any]:
        """The place after the last batch given out: tensors, numbers, lists and dicts, for a checkpoint."""
        if self.num_workers == 0 and self._started:
            readers = [{"state": pack_state(self.stream.state_dict()), "since": 0}]
        else:
            readers = [{**reader, "state": pack_state(_whole(reader["state"]))} for reader in self._readers]
        return {"readers": readers, "next_reader": self._next_reader}

    def seek(self, position: dict[str, Any]) -> None:
        """Let the next iteration continue from a place of a loader with as many readers and the same stream."""
        assert len(position["readers"]) == self.num_readers, "places of other numbers of readers go through `merged`"
        self._readers = [{**reader, "state": unpack_state(reader["state"])} for reader in position["readers"]]
        self._next_reader = position["next_reader"]
        self._started = False


def merged(stream: Stream, positions: list[dict[str, Any]], num_readers: int, world_size: int) -> dict[str, Any]:
    """The place from which another number of ranks or workers goes on with what has not been used.

    No document comes twice, and none is skipped but those that are split and of which a part has been used, at most a
    buffer for each reader. With workers the batches since their last snapshot are read again.

    Args:
        stream: Whose places they are.
        positions: Of all ranks.
        num_readers: Readers of a rank that continues.
        world_size: Ranks that continue.
    """
    states = [reader["state"] for position in positions for reader in position["readers"]]
    state = stream.merge(states, num_readers * world_size) if all(states) else {}
    return {"readers": [{"state": state, "since": 0} for _ in range(num_readers)], "next_reader": 0}


def pack_state(state: dict[str, Any]) -> dict[str, Any]:
    """A stream's state with its buffered documents as a few tensors: lists of a million numbers take seconds to load."""
    if not state or state["packer"] is None:
        return state
    packer, buffer = state["packer"], state["packer"]["buffer"]
    items = [item for _, _, item in buffer["items"]]
    is_masked = bool(items) and isinstance(items[0], tuple)
    columns = list(zip(*items, strict=True)) if is_masked else [items]
    packed = {
        **buffer,
        "items": {
            "lengths": torch.tensor([length for length, _, _ in buffer["items"]], dtype=torch.int64),
            "numbers": torch.tensor([number for _, number, _ in buffer["items"]], dtype=torch.int64),
            "parts": [_joined(column) for column in columns],
            "is_masked": is_masked,
        },
    }
    return {**state, "packer": {**packer, "buffer": packed}}


def unpack_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state that `pack_state` was given."""
    if not state or state["packer"] is None:
        return state
    packer, buffer = state["packer"], state["packer"]["buffer"]
    packed = buffer["items"]
    lengths, numbers = packed["lengths"].tolist(), packed["numbers"].tolist()
    columns = [np.split(part.numpy(), np.cumsum(lengths[:-1])) if lengths else [] for part in packed["parts"]]
    if packed["is_masked"]:
        items = [tuple(part.tolist() for part in parts) for parts in zip(*columns, strict=True)]
    else:
        items = columns[0]
    entries = [list(entry) for entry in zip(lengths, numbers, items, strict=True)]
    return {**state, "packer": {**packer, "buffer": {**buffer, "items": entries}}}


def _joined(parts: Sequence[Any]) -> torch.Tensor:
    """Token ids or masks one after the other, two bytes each where that is what they have."""
    if not parts:
        return torch.zeros(0, dtype=torch.int32)
    if isinstance(parts[0], np.ndarray):
        return torch.from_numpy(np.concatenate(parts))
    return torch.tensor([value for part in parts for value in part], dtype=torch.int32)


@dataclass(frozen=True)
class _Snapshot:
    """The state of a worker's stream, pickled by the worker itself: no checkpoint, from whomever, can hold one."""

    pickled: torch.Tensor

    @classmethod
    def of(cls, stream: Stream) -> "_Snapshot":
        return cls(torch.frombuffer(bytearray(pickle.dumps(stream.state_dict(), protocol=5)), dtype=torch.uint8))

    def state(self) -> dict[str, Any]:
        return pickle.loads(self.pickled.numpy().tobytes())  # noqa: S301 - see above


def _whole(state: dict[str, Any] | _Snapshot) -> dict[str, Any]:
    return state.state() if isinstance(state, _Snapshot) else state


def _unchanged(item: Any) -> Any:
    return item


class _Timed(Iterator[Batch]):
    """Lets the loader know how long its batches take."""

    def __init__(self, loader: ResumableLoader, batches: Iterator[Batch]) -> None:
        self.loader = loader
        self.batches = batches

    def __next__(self) -> Batch:
        self.loader.asked_at_s = time.perf_counter()
        batch = next(self.batches)
        self.loader.waited_s += time.perf_counter() - self.loader.asked_at_s
        return batch


@dataclass
class _Loaded:
    """What a worker sends: a batch, and now and then its state, in shared memory.

    Rows of text go through the pipe, two bytes a token: that takes less than setting up shared memory for them. A
    thread of the receiving process makes tensors of them, page-locked ones for a GPU.
    """

    rows: Any
    """What `rows` of the stream gives; once received, the batch."""
    snapshot: _Snapshot | None
    """The state of the stream."""
    used: tuple[int, int]
    """Tokens used and cropped so far, by the reader."""


class _Reader(IterableDataset[_Loaded]):
    """In a worker: the batches of its share, now and then with its state."""

    def __init__(self, stream: Stream, readers: list[dict[str, Any]], first: int) -> None:
        self.stream = stream
        self.readers = readers
        self.first = first

    def __iter__(self) -> Iterator[_Loaded]:
        worker = get_worker_info()
        assert worker is not None
        # The DataLoader asks worker 0 first; it reads for the reader whose turn it is.
        self.stream.reader_shift = self.first
        reader = self.readers[(worker.id + self.first) % worker.num_workers]
        if state := _whole(reader["state"]):
            self.stream.load_state_dict(state)
        batches = self.stream.rows()
        for _ in range(reader["since"]):
            next(batches)
        for count, rows in enumerate(batches, start=reader["since"] + 1):
            counts = self.stream.counts
            yield _Loaded(
                rows=rows,
                snapshot=_Snapshot.of(self.stream) if count % SNAPSHOT_EVERY == 0 else None,
                used=(counts.used, counts.cropped),
            )

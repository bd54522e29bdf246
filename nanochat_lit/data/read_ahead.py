"""An iterator that a thread reads ahead, so that the next item is there when it is asked for."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

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

"""What was loaded and may be wanted again, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Held(Generic[Item]):
    """A least-recently-used cache: a set larger than memory works, and a small one is loaded once.

    Several threads may ask. Two that want the same item at once both load it.

    Args:
        capacity: Most bytes kept, besides the item that was asked for last.
        size: `item -> bytes`.
    """

    def __init__(self, capacity: int, size: Callable[[Item], int]) -> None:
        self._capacity, self._size = capacity, size
        self._bytes = 0
        self._items: OrderedDict[Hashable, Item] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of items that are kept."""
        return len(self._items)

    def get(self, key: Hashable, load: Callable[[], Item]) -> Item:
        """The item of a key, loaded when it is not there."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        item = load()
        with self._lock:
            if key not in self._items:
                self._items[key] = item
                self._bytes += self._size(item)
            while self._bytes > self._capacity and len(self._items) > 1:
                self._bytes -= self._size(self._items.popitem(last=False)[1])
        return item

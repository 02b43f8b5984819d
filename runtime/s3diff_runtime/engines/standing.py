"""Results that stay for further calls: those of the last few keys."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Standing(Generic[T]):
    """Results by key, of which the least recently asked for leave. Safe to use from several threads.

    Args:
        most: results that may stay.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, Lock()
        self._results: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result for `key`, which `compute` makes where there is none; room is made before."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
            while len(self._results) >= self._most:
                self._results.popitem(last=False)
        result = compute()
        with self._lock:
            self._results[key] = result
        return result

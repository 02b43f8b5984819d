"""Memory that a chain of stages uses: allocated once, kept, and grown when a larger shape comes."""

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.engines.tensorrt.cuda import Handle


class Buffers:
    """Buffers by name, each as large as the largest that was asked for under its name.

    A name may be taken several times in one round (from one `rewind` to the next): every time it is another
    buffer, so that nothing is overwritten before the round ends; and in every round the same ones, so that
    addresses stay what they were.

    Attributes:
        generation: counts the buffers that were freed. While it stays the same, so do all addresses.
    """

    def __init__(self, allocate: Callable[[int], Handle]) -> None:
        self._allocate = allocate
        self._held: dict[tuple[str, int], tuple[Handle, int]] = {}
        self._taken: Counter[str] = Counter()
        self.generation = 0

    def take(self, name: str, size: int) -> int:
        """The address of `size` bytes that nobody else takes in this round. Raises `OutOfMemory`."""
        self._taken[name] += 1
        return self._grown((name, self._taken[name]), size)

    def share(self, name: str, size: int, before_free: Callable[[], None] = lambda: None) -> int:
        """The address of `size` bytes that everybody gets who asks for `name`. Raises `OutOfMemory`.

        `before_free` is called before a buffer that is too small goes; it must wait for who still uses it.
        """
        held = self._held.get((name, 0))
        if held and held[1] < size:
            before_free()
        return self._grown((name, 0), size)

    def rewind(self) -> None:
        """End the round: every buffer may be taken again."""
        self._taken.clear()

    def release(self) -> None:
        """Free everything; the work that uses it must have ended."""
        self.rewind()
        self.generation += len(self._held)
        while self._held:
            self._held.popitem()[1][0].close()

    def _grown(self, key: tuple[str, int], size: int) -> int:
        held = self._held.get(key)
        if held is None or held[1] < size:
            if held is not None:  # first: both together may be more than there is
                del self._held[key]
                self.generation += 1
                held[0].close()
            held = self._held[key] = (self._allocate(max(size, 1)), size)
        return int(held[0])


def size_of(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def host_view(address: int, shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """Host memory as an array; the memory must outlive it."""
    memory = (ctypes.c_uint8 * size_of(shape, dtype)).from_address(address)
    return np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)

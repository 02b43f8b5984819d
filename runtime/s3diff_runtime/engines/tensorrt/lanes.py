"""Lanes: the order of work on the device, the memory it uses, and who may use both at a time.

A lane is a stream with its buffers. A chain of stages takes one, puts the image on it once, runs its stages
one after another without waiting, and waits only to fetch what it wants on the host. Tensors of a lane belong
to the chain that made them: when the chain gives the lane back, they are gone, and the next chain finds the
same buffers at the same addresses, which is what lets CUDA graphs be launched again.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, Semaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import LANES, Value
from s3diff_runtime.engines.tensorrt.buffers import Buffers, host_view, size_of
from s3diff_runtime.engines.tensorrt.cuda import Cuda, Handle
from s3diff_runtime.errors import JobError, OutOfMemory

_logger = logging.getLogger(__name__)


class DeviceTensor:
    """A tensor on the device, until its lane is given back. `numpy.asarray` fetches it."""

    def __init__(self, lane: "Lane", address: int, shape: tuple[int, ...], dtype: str) -> None:
        self.lane, self.address, self.shape, self.dtype = lane, address, shape, dtype
        self._chain = lane.chain

    def require_alive(self) -> None:
        """Raise `JobError` when the lane was given back, and the memory may hold something else."""
        if self._chain != self.lane.chain:
            raise JobError("a tensor was used after its lane was given back; fetch it before")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: ANN401
        array = self.lane.fetch(self)
        return array if dtype is None else array.astype(dtype, copy=False)


class Lane:
    """A stream with its memory. Used by one chain at a time, in the thread that took it from the `LanePool`.

    Attributes:
        stream: where all work of the chain is queued.
        chain: number of the chain that has the lane.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.stream = cuda.make_stream()
        self.chain = 0
        self._device, self._pinned = Buffers(cuda.allocate), Buffers(cuda.allocate_pinned)
        self._spans: list[tuple[str, Handle, Handle]] = []
        self._events: list[Handle] = []
        self._recorded = 0
        self._kept: list[object] = []
        self._standing: tuple[Hashable, int, dict[str, tuple[int, tuple[int, ...], str]]] | None = None

    @property
    def generation(self) -> int:
        """While it stays the same, every address on the device is what it was."""
        return self._device.generation

    def upload(self, name: str, array: NDArray[Any]) -> DeviceTensor:
        """Queue the copy of an array to the device, through pinned memory. Raises `OutOfMemory`."""
        tensor = self.place(name, array.shape, array.dtype.name)
        size = size_of(tensor.shape, tensor.dtype)
        pinned = self._pinned.take(name, size)
        host_view(pinned, tensor.shape, tensor.dtype)[...] = array
        self._cuda.copy(tensor.address, pinned, size, self.stream)
        return tensor

    def place(self, name: str, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """Room on the device, with anything in it. Raises `OutOfMemory`."""
        return DeviceTensor(self, self._device.take(name, size_of(shape, dtype)), shape, dtype)

    def scratch(self, size: int) -> int:
        """Memory that each stage of the lane uses while it runs, one after another. Raises `OutOfMemory`."""
        return self._device.share(" scratch", size, lambda: self._cuda.synchronize(self.stream))

    def fetch(self, tensor: DeviceTensor) -> NDArray[Any]:
        """Copy a tensor to the host, after the work that makes it. Raises `JobError` for what failed."""
        tensor.require_alive()
        size = size_of(tensor.shape, tensor.dtype)
        pinned = self._pinned.share(" fetched", size)  # free: every fetch waits for its end
        self._cuda.copy(pinned, tensor.address, size, self.stream, to_host=True)
        self._cuda.synchronize(self.stream)
        return host_view(pinned, tensor.shape, tensor.dtype).copy()

    def standing(self, key: Hashable, compute: Callable[[], Mapping[str, Value]]) -> Mapping[str, Value]:
        """See `Lane.standing`. The results of one key stay, while every address is what it was."""
        if self._standing is not None and self._standing[:2] == (key, self.generation):
            return {
                name: DeviceTensor(self, address, shape, dtype)
                for name, (address, shape, dtype) in self._standing[2].items()
            }
        self._standing = None
        values = {name: on_lane(self, name, value) for name, value in compute().items()}
        places = {name: (value.address, value.shape, value.dtype) for name, value in values.items()}
        self._standing = key, self.generation, places
        return values

    def keep(self, thing: object) -> None:
        """Hold on to what the work of the chain uses until that work has ended."""
        self._kept.append(thing)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the device time of what the block queues for `stage`, once the chain ends."""
        start, end = self._event(), self._event()
        self._cuda.record(start, self.stream)
        yield
        self._cuda.record(end, self.stream)
        self._spans.append((stage, start, end))

    def finish(self, clock: Clock) -> None:
        """End the chain: wait for its work, and count its time. Raises `JobError` for what failed."""
        self._cuda.synchronize(self.stream)
        for stage, start, end in self._spans:
            clock.add({stage: self._cuda.seconds_between(start, end)})
        self._spans.clear()
        self._recorded = 0
        self._kept.clear()
        self.chain += 1
        self._device.rewind()
        self._pinned.rewind()

    def destroy(self) -> None:
        """Free everything, whatever state the work is in. The lane cannot be used again."""
        self.chain += 1
        try:
            self._cuda.synchronize(self.stream)
        except JobError as error:  # the chain has failed with it, or fails with what it came from
            _logger.info("a lane was given up: %s", error)
        for event in self._events:
            event.close()
        self._kept.clear()
        self._device.release()
        self._pinned.release()
        self.stream.close()

    def _event(self) -> Handle:
        """One that this chain has not used; the lane owns them all, until its work is done."""
        if self._recorded == len(self._events):
            self._events.append(self._cuda.make_event())
        self._recorded += 1
        return self._events[self._recorded - 1]


class LanePool:
    """The lanes of one GPU, for `LANES` chains at a time; others wait. Safe to use from several threads."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._idle: list[Lane] = []
        self._lock, self._turns = Lock(), Semaphore(LANES)

    @contextmanager
    def lane(self, clock: Clock) -> Iterator[Lane]:
        """A lane for one chain. A chain that holds one must not ask for another: it could wait for itself.

        Where the block raises, the lane is destroyed, because its memory may be what was lacking and its
        stream may be broken; where memory ran out, the lanes that nobody uses are, too.

        Raises:
            JobError: when work of the chain failed on the device.
        """
        with self._turns:
            self._cuda.activate()
            with self._lock:
                lane = self._idle.pop() if self._idle else None
            lane = lane or Lane(self._cuda)
            try:
                yield lane
                lane.finish(clock)
            except BaseException as error:
                lane.destroy()
                if isinstance(error, OutOfMemory):
                    self._release_idle()
                raise
            with self._lock:
                self._idle.append(lane)

    def _release_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for lane in idle:
            lane.destroy()


def lane_of(values: dict[str, Any]) -> Lane | None:
    """The lane that holds some of the values; None when all of them are on the host.

    Raises:
        JobError: when they are of several lanes, or of one that was given back.
    """
    tensors = [value for value in values.values() if isinstance(value, DeviceTensor)]
    for tensor in tensors:
        tensor.require_alive()
    if any(tensor.lane is not tensors[0].lane for tensor in tensors):
        raise JobError("inputs lie on several lanes; fetch them with numpy.asarray first")
    return tensors[0].lane if tensors else None


def on_lane(lane: Lane, name: str, value: Any) -> DeviceTensor:  # noqa: ANN401 - a Value
    """The value on the device; arrays are uploaded."""
    return value if isinstance(value, DeviceTensor) else lane.upload(name, np.asarray(value))

"""Stands in for `cuda.bindings.runtime`, and checks the contract of every call.

Work on a stream runs only when the stream is synchronised, so that a missing wait shows as a wrong result.
What a GPU would answer with a crash or with silent garbage is a `Violation`: memory used after it was freed
or beyond its end, something freed twice or while queued work needs it, a graph launched over dead buffers or
after its execution context took other shapes, a stream used from a thread on which its GPU is not the current
one. Violations are raised, and kept in `violations` because finalizers swallow what is raised in them.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, TypeVar

from cuda.bindings import runtime as real

Answer = tuple[Any, ...]
"""An error code and the results."""
F = TypeVar("F", bound=Callable[..., Any])
_SUCCESS = real.cudaError_t.cudaSuccess
_NO_MEMORY = real.cudaError_t.cudaErrorMemoryAllocation


class Violation(AssertionError):
    """A call that breaks the contract of CUDA or TensorRT."""


class DeviceFault(Exception):
    """What a kernel raises to fail; the next synchronisation reports it, and every call after it."""


@dataclass
class Block:
    """A piece of memory; device memory is host memory of its own here."""

    kind: str
    size: int
    memory: Any = field(repr=False)
    live: bool = True

    @property
    def address(self) -> int:
        return ctypes.addressof(self.memory)


@dataclass
class Op:
    """Queued work, the blocks that it reads and writes, and what else must stay until it is done."""

    run: Callable[[], object]
    blocks: Sequence[Block]
    users: tuple[object, ...] = ()
    is_current: Callable[[], bool] = lambda: True
    """Whether what it was captured from is still in the state that it had."""


@dataclass
class Stream:
    device: int
    queue: list[Op] = field(default_factory=list)
    captured: list[Op] | None = None
    live: bool = True


@dataclass
class Thing:
    """An event or a graph, with an integer value like the objects of `cuda.bindings`."""

    number: int
    kind: str
    content: Any = None
    live: bool = True

    def __int__(self) -> int:
        return self.number


Handle = Thing | int


def locked(function: F) -> F:
    """A method that one thread at a time is in."""

    @wraps(function)
    def alone(self: FakeCuda, *arguments: Any) -> Any:  # noqa: ANN401
        with self.lock:
            return function(self, *arguments)

    return alone  # type: ignore[return-value]


def call(results: int) -> Callable[[F], F]:
    """A function of the module: counted, made to fail where that was asked for, one thread at a time."""

    def decorate(function: F) -> F:
        @locked
        @wraps(function)
        def counted(self: FakeCuda, *arguments: Any) -> Any:  # noqa: ANN401
            name = function.__name__
            self.calls[name] += 1
            error = self.broken or self.failures.get((name, self.calls[name]))
            if error is not None:
                if name == "cudaStreamEndCapture":  # ends it, well or badly
                    self._stream(*arguments).captured = None
                if name == "cudaStreamSynchronize":  # nothing runs after an error
                    self._stream(*arguments).queue.clear()
                return (error, *[None] * results)
            return function(self, *arguments)

        return counted  # type: ignore[return-value]

    return decorate


class FakeCuda:
    """A machine with GPUs of `memory` bytes each; host memory has no end."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking

    def __init__(self, memory: int = 2**28, gpus: int = 1) -> None:
        self.memory, self.gpus = memory, gpus
        self.name, self.capability, self.driver = b"Fake GPU", (8, 9), 13000
        self.calls: Counter[str] = Counter()
        self.failures: dict[tuple[str, int], Any] = {}
        self.broken: Any = None
        """What every call returns, once work has failed on the device."""
        self.violations: list[str] = []
        self.copied: list[tuple[str, int]] = []
        self.lock = threading.RLock()
        self.blocks: dict[int, Block] = {}
        self.streams: dict[int, Stream] = {}
        self.things: dict[int, Thing] = {}
        self._numbers = iter(range(1000, 10**9))
        self._current = threading.local()
        self._now = 0.0

    # --- what tests ask -------------------------------------------------------------------------------

    @locked
    def fail(self, name: str, at: int = 1, error: Any = real.cudaError_t.cudaErrorUnknown) -> None:  # noqa: ANN401
        """Let the `at`-th call of a function from now on return an error."""
        self.failures[name, self.calls[name] + at] = error

    @locked
    def leaks(self) -> list[str]:
        """What was not freed. The driver has freed everything where work has failed on the device."""
        if self.broken:
            return []
        found = [f"{block.kind} memory" for block in self.blocks.values() if block.live]
        found += ["stream" for stream in self.streams.values() if stream.live]
        return found + [thing.kind for thing in self.things.values() if thing.live]

    @locked
    def used(self) -> int:
        """Bytes of device memory that are held."""
        return sum(block.size for block in self.blocks.values() if block.live and block.kind == "device")

    @locked
    def require(self, holds: object, problem: str) -> None:
        if not holds:
            self.violations.append(problem)
            raise Violation(problem)

    @locked
    def block(self, address: int, size: int, kind: str) -> Block:
        """The live block that holds `size` bytes at `address`."""
        for block in self.blocks.values():
            if block.live and block.address <= address < block.address + block.size:
                self.require(block.kind == kind, f"{kind} memory expected, {block.kind} memory given")
                self.require(address + size <= block.address + block.size, "access beyond the end of a block")
                return block
        self.require(False, f"{kind} memory at {address} is not allocated")
        raise AssertionError

    @locked
    def enqueue(self, stream: int, op: Op) -> None:
        found = self._stream(stream)
        self.require(self.current() == found.device, "the stream's GPU is not the current one")
        (found.queue if found.captured is None else found.captured).append(op)

    @locked
    def pending(self) -> list[tuple[int, Op]]:
        """Queued work by its stream."""
        return [(number, op) for number, stream in self.streams.items() for op in stream.queue]

    @locked
    def require_unused(self, user: object, problem: str) -> None:
        """Nothing that is queued needs it."""
        self.require(not any(user is each for _, op in self.pending() for each in op.users), problem)

    def current(self) -> int:
        return getattr(self._current, "index", 0)

    # --- devices --------------------------------------------------------------------------------------

    @call(1)
    def cudaGetDeviceCount(self) -> Answer:
        return (_SUCCESS, self.gpus) if self.gpus else (real.cudaError_t.cudaErrorNoDevice, None)

    @call(1)
    def cudaDriverGetVersion(self) -> Answer:
        return _SUCCESS, self.driver

    @call(1)
    def cudaGetDeviceProperties(self, index: int) -> Answer:
        major, minor = self.capability
        return _SUCCESS, SimpleNamespace(name=self.name, major=major, minor=minor)

    @call(0)
    def cudaSetDevice(self, index: int) -> Answer:
        self.require(index < self.gpus, f"there is no GPU {index}")
        self._current.index = index
        return (_SUCCESS,)

    def cudaGetErrorString(self, error: object) -> Answer:
        return real.cudaGetErrorString(error)

    # --- memory ---------------------------------------------------------------------------------------

    @call(1)
    def cudaMalloc(self, size: int) -> Answer:
        if self.used() + size > self.memory:
            return _NO_MEMORY, None
        return _SUCCESS, self._new_block("device", size)

    @call(2)
    def cudaMemGetInfo(self) -> Answer:
        return _SUCCESS, self.memory - self.used(), self.memory

    @call(1)
    def cudaMallocHost(self, size: int) -> Answer:
        return _SUCCESS, self._new_block("pinned", size)

    @call(0)
    def cudaFree(self, address: int) -> Answer:
        return self._free(address, "device")

    @call(0)
    def cudaFreeHost(self, address: int) -> Answer:
        return self._free(address, "pinned")

    @call(0)
    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: object, stream: Handle) -> Answer:
        to_device = kind == real.cudaMemcpyKind.cudaMemcpyHostToDevice
        kinds = ("device", "pinned") if to_device else ("pinned", "device")
        blocks = [
            self.block(address, size, where) for address, where in zip((target, source), kinds, strict=True)
        ]
        self.copied.append(("in" if to_device else "out", size))
        self.enqueue(int(stream), Op(partial(ctypes.memmove, target, source, size), blocks))
        return (_SUCCESS,)

    # --- order ----------------------------------------------------------------------------------------

    @call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Answer:
        number = next(self._numbers)
        self.streams[number] = Stream(self.current())
        return _SUCCESS, number

    @call(0)
    def cudaStreamSynchronize(self, number: Handle) -> Answer:
        stream = self._stream(number)
        self.require(stream.captured is None, "synchronised while capturing")
        while stream.queue:
            op = stream.queue[0]
            self.require(all(block.live for block in op.blocks), "work ran on memory that was freed")
            try:
                op.run()
            except DeviceFault:
                self.broken = real.cudaError_t.cudaErrorIllegalAddress
                return (self.broken,)
            stream.queue.pop(0)
        return (_SUCCESS,)

    @call(0)
    def cudaStreamDestroy(self, number: Handle) -> Answer:
        stream = self._stream(number)
        self.require(not stream.queue, "a stream was destroyed before its work was done")
        stream.live = False
        return (_SUCCESS,)

    @call(1)
    def cudaEventCreate(self) -> Answer:
        return _SUCCESS, self._new_thing("event")

    @call(0)
    def cudaEventRecord(self, event: Thing, stream: Handle) -> Answer:
        self._live(event, "event").content = None

        def pass_by() -> None:
            self._now += 1.0
            event.content = self._now

        self.enqueue(int(stream), Op(pass_by, (), (event,)))
        return (_SUCCESS,)

    @call(1)
    def cudaEventElapsedTime(self, start: Thing, end: Thing) -> Answer:
        for event in (start, end):
            self.require(self._live(event, "event").content, "an event was read before it passed")
        return _SUCCESS, end.content - start.content

    @call(0)
    def cudaEventDestroy(self, event: Thing) -> Answer:
        return self._destroy(event, "event")

    # --- graphs ---------------------------------------------------------------------------------------

    @call(0)
    def cudaStreamBeginCapture(self, number: Handle, mode: object) -> Answer:
        stream = self._stream(number)
        self.require(stream.captured is None, "capture begun twice")
        stream.captured = []
        return (_SUCCESS,)

    @call(1)
    def cudaStreamEndCapture(self, number: Handle) -> Answer:
        stream = self._stream(number)
        self.require(stream.captured is not None, "capture ended that never began")
        ops, stream.captured = stream.captured, None
        return _SUCCESS, self._new_thing("graph", ops)

    @call(1)
    def cudaGraphInstantiate(self, graph: Thing, flags: int) -> Answer:
        ops = self._live(graph, "graph").content
        self.require(ops, "an empty graph")
        return _SUCCESS, self._new_thing("executable graph", list(ops))

    @call(0)
    def cudaGraphLaunch(self, graph: Thing, stream: Handle) -> Answer:
        for op in self._live(graph, "executable graph").content:
            self.require(all(block.live for block in op.blocks), "a graph was launched over dead buffers")
            self.require(
                op.is_current(), "a graph was launched after its context changed shapes, or was freed"
            )
            self.enqueue(int(stream), Op(op.run, op.blocks, (graph, *op.users)))
        return (_SUCCESS,)

    @call(0)
    def cudaGraphDestroy(self, graph: Thing) -> Answer:
        return self._destroy(graph, "graph")

    @call(0)
    def cudaGraphExecDestroy(self, graph: Thing) -> Answer:
        return self._destroy(graph, "executable graph")

    # --- the rest -------------------------------------------------------------------------------------

    def _new_block(self, kind: str, size: int) -> int:
        self.require(size > 0, "an allocation of nothing")
        block = Block(kind, size, (ctypes.c_uint8 * size)(*[0xA5] * min(size, 64)))
        self.blocks[block.address] = block
        return block.address

    def _free(self, address: int, kind: str) -> Answer:
        block = self.blocks.get(address)
        self.require(block is not None and block.live, f"{kind} memory was freed twice, or never allocated")
        if block is None:
            raise AssertionError
        self.require(block.kind == kind, f"{block.kind} memory was freed as {kind} memory")
        used = any(block in op.blocks for _, op in self.pending())
        self.require(not used, f"{kind} memory was freed while queued work uses it")
        block.live = False
        return (_SUCCESS,)

    def _stream(self, number: Handle) -> Stream:
        stream = self.streams.get(int(number))
        self.require(stream is not None and stream.live, "a stream was used that is none, or no more")
        if stream is None:
            raise AssertionError
        return stream

    def _new_thing(self, kind: str, content: object = None) -> Thing:
        thing = Thing(next(self._numbers), kind, content)
        self.things[thing.number] = thing
        return thing

    def _live(self, thing: Thing, kind: str) -> Thing:
        self.require(thing.live and thing.kind == kind, f"{kind} expected, got {thing}")
        return thing

    def _destroy(self, thing: Thing, kind: str) -> Answer:
        self._live(thing, kind)
        self.require_unused(thing, f"{kind} was destroyed while it is queued")
        thing.live = False
        return (_SUCCESS,)

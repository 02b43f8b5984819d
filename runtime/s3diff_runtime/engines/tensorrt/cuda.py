"""The calls of the CUDA runtime that engines need: every error code is looked at, nothing is freed twice."""

import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from s3diff_runtime.errors import JobError, OutOfMemory, RequestError

_FATAL = frozenset(
    f"cudaError{name}"
    for name in (
        "Assert",
        "Contained",
        "ExternalDevice",
        "HardwareStackError",
        "IllegalAddress",
        "IllegalInstruction",
        "InvalidAddressSpace",
        "InvalidPc",
        "LaunchFailure",
        "LaunchTimeout",
        "MisalignedAddress",
        "MpsClientTerminated",
        "TensorMemoryLeak",
    )
)
"""Errors after which every call of the process fails, CUDA says. By name: older bindings lack some."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """What decides which engines a GPU runs."""

    index: int
    name: str
    compute_capability: str
    """Such as `9.0`."""
    driver: str
    """The newest CUDA version that the driver serves, such as `13.0`."""


class Handle:
    """Something that CUDA made. It is freed once: by `close`, or when the last reference to it goes.

    Attributes:
        value: what the calls of CUDA take: an address, or an object of `cuda.bindings`.
    """

    def __init__(self, value: Any, free: Callable[[], None]) -> None:  # noqa: ANN401 - opaque to us
        self.value = value
        self._finalizer = weakref.finalize(self, free)
        self._finalizer.atexit = False  # the driver frees what is left, and may be gone before Python is

    def close(self) -> None:
        """Free it, unless that was done."""
        self._finalizer()

    def __int__(self) -> int:
        return int(self.value)


def load_runtime() -> Any:  # noqa: ANN401 - a module whose functions have no annotations
    """The module `cuda.bindings.runtime`. Raises `RequestError` when it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise RequestError(
            "CUDA's Python bindings are not installed: pip install 's3diff-export[tensorrt]', or [gpu]"
        ) from error
    return runtime


def count_gpus(runtime: Any) -> int:  # noqa: ANN401
    """How many GPUs this machine has.

    Raises:
        RequestError: when there is none, or no driver, or one that is too old.
    """
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        found = "none" if error == runtime.cudaError_t.cudaSuccess else error.name
        raise RequestError(
            f"no usable GPU was found (CUDA reports {found}); check that nvidia-smi lists one and that its "
            "driver is new enough, or use device cpu"
        )
    return int(count)


class Cuda:
    """One GPU. All methods may be called from any thread, after `activate` in that thread.

    Args:
        runtime: the module `cuda.bindings.runtime`, or what stands in for it.
        index: of the GPU.

    Raises:
        RequestError: when there is no such GPU.
    """

    def __init__(self, runtime: Any, index: int = 0) -> None:  # noqa: ANN401
        self._runtime = runtime
        count = count_gpus(runtime)
        if index >= count:
            raise RequestError(f"device cuda:{index} was asked for, and this machine has {count} GPU(s)")
        self.gpu = self._describe(index)

    def activate(self) -> None:
        """Make this GPU the current one of the calling thread."""
        self._call("cudaSetDevice", self.gpu.index)

    # --- memory -----------------------------------------------------------------------------------

    def free_memory(self) -> int:
        """Bytes of device memory that nobody holds."""
        return int(self._call("cudaMemGetInfo")[0])

    def allocate(self, size: int) -> Handle:
        """Device memory of `size` bytes, aligned to 256. Raises `OutOfMemory` when there is not as much."""
        return self._owned(self._call("cudaMalloc", size), "cudaFree")

    def allocate_pinned(self, size: int) -> Handle:
        """Host memory of `size` bytes that the GPU copies from and to by itself. Raises `OutOfMemory`."""
        return self._owned(self._call("cudaMallocHost", size), "cudaFreeHost")

    def copy(self, target: int, source: int, size: int, stream: Handle, to_host: bool = False) -> None:
        """Queue a copy of `size` bytes between pinned host memory and the device.

        What is copied to the device must stay as it is until then.
        """
        kinds = self._runtime.cudaMemcpyKind
        kind = kinds.cudaMemcpyDeviceToHost if to_host else kinds.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream.value)

    # --- order and time ---------------------------------------------------------------------------

    def make_stream(self) -> Handle:
        """A queue of work that does not wait for any other."""
        stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return self._owned(stream, "cudaStreamDestroy")

    def synchronize(self, stream: Handle) -> None:
        """Wait for all work of `stream`. Raises `JobError` for what failed in it."""
        self._call("cudaStreamSynchronize", stream.value)

    def make_event(self) -> Handle:
        """A point in time on the device."""
        return self._owned(self._call("cudaEventCreate"), "cudaEventDestroy")

    def record(self, event: Handle, stream: Handle) -> None:
        """Let `event` be when the device gets here in `stream`."""
        self._call("cudaEventRecord", event.value, stream.value)

    def seconds_between(self, start: Handle, end: Handle) -> float:
        """Device time between two events that have passed."""
        return float(self._call("cudaEventElapsedTime", start.value, end.value)) / 1000

    # --- graphs -----------------------------------------------------------------------------------

    def capture(self, stream: Handle, enqueue: Callable[[], None]) -> Handle:
        """Make a graph, ready for launch, of the work that `enqueue` queues on `stream`; it does not run.

        Raises:
            JobError: when the work cannot be captured, or `enqueue` raises it.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.value, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(JobError):  # a broken capture leaves no graph, and must end all the same
                self._end_capture(stream).close()
            raise
        graph = self._end_capture(stream)
        try:
            instance = self._call("cudaGraphInstantiate", graph.value, 0)
        finally:
            graph.close()
        return self._owned(instance, "cudaGraphExecDestroy")

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Queue the work of a captured graph."""
        self._call("cudaGraphLaunch", graph.value, stream.value)

    def _end_capture(self, stream: Handle) -> Handle:
        return self._owned(self._call("cudaStreamEndCapture", stream.value), "cudaGraphDestroy")

    # --- calls ------------------------------------------------------------------------------------

    def _describe(self, index: int) -> Gpu:
        properties, version = self._call("cudaGetDeviceProperties", index), self._call("cudaDriverGetVersion")
        name = properties.name
        return Gpu(
            index=index,
            name=(name.decode(errors="replace") if isinstance(name, bytes) else name).rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - what CUDA returns
        """Call a function of the CUDA runtime; its results, without the error code."""
        error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise self._failure(name, error)
        return results[0] if len(results) == 1 else tuple(results)

    def _failure(self, name: str, error: Any) -> JobError:  # noqa: ANN401
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            return OutOfMemory(
                f"the GPU {self.gpu.name} ran out of memory ({name}); smaller tiles or batches need less"
            )
        _, text = self._runtime.cudaGetErrorString(error)
        reason = text.decode(errors="replace") if isinstance(text, bytes) else text
        again = (
            "restart the process, which CUDA serves no more"
            if error.name in _FATAL
            else "open the bundle again"
        )
        return JobError(
            f"the GPU failed in {name}: {error.name} ({reason}); check nvidia-smi and the kernel log for "
            f"faults, and {again}"
        )

    def _owned(self, value: Any, free: str) -> Handle:  # noqa: ANN401
        runtime = self._runtime

        def freeing() -> None:
            (error,) = getattr(runtime, free)(value)
            # Nobody up there could do anything about it; after a fatal one everything is lost anyway.
            if error != runtime.cudaError_t.cudaSuccess and error.name not in _FATAL:
                _logger.warning("%s failed: %s", free, error.name)

        return Handle(value, freeing)

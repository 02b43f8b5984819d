"""What every engine offers: sessions of its stages, and lanes to chain them on."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.clock import Clock

LANES = 2
"""Chains that run at a time on one device; further callers wait. Two keep it busy while one of them copies or
runs what cannot be spread; more would only hold memory."""


class Value(Protocol):
    """A tensor wherever its engine keeps it; `numpy.asarray` brings it to the host. Arrays are values too."""

    def __array__(self) -> NDArray[Any]: ...


def shape_of(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - a Value; ONNX Runtime's have a method for it
    """The shape of a tensor, which stays where it is."""
    shape = value.shape
    return tuple(shape() if callable(shape) else shape)


def tensor_problem(side: str, found: Iterable[str], expected: Iterable[str]) -> str:
    """What to say of a graph whose inputs or outputs, each in words, are not the manifest's; else empty."""
    has, wanted = (", ".join(tensors) or "none" for tensors in (found, expected))
    return "" if has == wanted else f"has the {side} {has}, the manifest says {wanted}"


class Session(Protocol):
    """One graph, ready to run. Sessions of one engine take each other's outputs without a copy to the host.

    Safe to call from several threads; frees what it holds when the last reference to it goes.
    """

    def run(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Compute all outputs.

        Args:
            inputs: every input of the stage by name, with the dtypes and shapes of the manifest.

        Raises:
            JobError: when the engine fails, for example on shapes that do not fit; `OutOfMemory` for want of
                memory.
        """


class Lane(Protocol):
    """Where one chain of stages runs. What lies on it is gone when the chain ends."""

    def upload(self, name: str, array: NDArray[Any], /) -> Value:
        """Bring a tensor to the device, once for all stages that read it. Raises `OutOfMemory`."""

    def standing(self, key: Hashable, compute: Callable[[], Mapping[str, Value]]) -> Mapping[str, Value]:
        """What `compute` gave when it was called for `key`, and where it was not, calls it now.

        The results stay for further chains, until those of other keys take their room.
        """

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Count the time of the block, or of the device on what the block asks of it, for `stage`."""


class Engine(Protocol):
    """Makes sessions on one device."""

    name: str
    device: str
    precision: str | None
    """What it computes in, `bf16` or `f32`, whatever the graphs say; None computes in their types."""

    def lane(self, clock: Clock) -> AbstractContextManager[Lane]:
        """Room for one chain of stages, whose times go to `clock` when it ends.

        Results must be brought to the host within. Callers on other threads get other lanes.
        """

    def open(self, graph: Path, stage: Stage) -> Session:
        """Load a graph.

        Args:
            graph: path of the ONNX file, or of what the engine has in its place.
            stage: what the manifest says of it.

        Raises:
            BundleError: when the graph cannot be loaded, or is not what the manifest says.
            RequestError: when the device cannot serve.
        """

"""A stand-in for ONNX Runtime on CUDA: computes on the host, and keeps the rules of its CUDA graphs.

A replay does not read its inputs where the binding says, but where they were at the capture; a run with a
graph whose addresses have changed, or in another thread than the capture, is a violation.
"""

from collections.abc import Sequence
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NO_GRAPH = "-1"


class Violation(Exception):
    """A run that would read or write the wrong memory on a GPU."""


class OrtValue:
    """A tensor on the device."""

    def __init__(self, array: Array) -> None:
        self._array = array.copy()

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: Sequence[int], dtype: np.dtype[Any], device: str, index: int
    ) -> "OrtValue":
        assert device == "cuda"
        return cls(np.full(shape, 77, dtype))  # whatever lay there

    def update_inplace(self, array: Array) -> None:
        self._array[...] = array

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def numpy(self) -> Array:
        return self._array.copy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:  # noqa: ANN401
        return self.numpy()


class RunOptions:
    """Keeps the number of the graph."""

    def __init__(self) -> None:
        self.graph = ""

    def add_run_config_entry(self, key: str, value: str) -> None:
        assert key == "gpu_graph_id"
        self.graph = value


class Binding:
    """What a run reads and writes."""

    def __init__(self) -> None:
        self.inputs: dict[str, OrtValue] = {}
        self.outputs: dict[str, OrtValue | None] = {}

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: OrtValue) -> None:
        self.outputs[name] = value

    def bind_output(self, name: str, device: str, index: int) -> None:
        assert device == "cuda"
        self.outputs[name] = None

    def get_outputs(self) -> list[OrtValue]:
        return [value for value in self.outputs.values() if value is not None]


class InferenceSession:
    """Doubles its input `x`; counts how its runs were made."""

    captures_allowed = True

    def __init__(
        self,
        path: str,
        options: Any,  # noqa: ANN401
        providers: list[tuple[str, dict[str, Any]]],
        enable_fallback: int,
    ) -> None:
        [(provider, self.settings)] = providers
        assert not enable_fallback  # it would load the graph without the settings
        assert provider == "CUDAExecutionProvider"
        if self.settings["enable_cuda_graph"] and not self.captures_allowed:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        self.thread = get_ident()
        self.graphs: dict[str, tuple[dict[str, OrtValue], OrtValue]] = {}
        self.eager = self.captured = self.replayed = 0

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x")]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="y")]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: RunOptions | None) -> None:
        if get_ident() != self.thread:
            raise Violation("a run in another thread than the session was made in")
        graph = options.graph if options else NO_GRAPH
        if bool(self.settings["enable_cuda_graph"]) != (options is not None):
            raise Violation("a graph's number is for sessions that capture, and for each of their runs")
        if graph == NO_GRAPH:
            self.eager += 1
        elif graph not in self.graphs:
            y = binding.outputs["y"]
            if y is None:
                raise Violation("a captured graph needs outputs that stay")
            self.graphs[graph] = (dict(binding.inputs), y)
            self.captured += 1
        else:
            self.replayed += 1
            inputs, output = self.graphs[graph]
            if inputs["x"].data_ptr() != binding.inputs["x"].data_ptr() or output is not binding.outputs["y"]:
                raise Violation("a replay on tensors that have moved")
        result = 2 * binding.inputs["x"].numpy()
        bound = binding.outputs["y"]
        if bound is None:
            binding.outputs["y"] = OrtValue(result)
        else:
            bound.update_inplace(result)


def module() -> Any:  # noqa: ANN401
    """What `import onnxruntime` would give."""
    return SimpleNamespace(
        OrtValue=OrtValue,
        RunOptions=RunOptions,
        InferenceSession=InferenceSession,
        set_default_logger_severity=lambda level: None,
        preload_dlls=lambda: print("not found"),  # noqa: T201 - as the real one does
    )

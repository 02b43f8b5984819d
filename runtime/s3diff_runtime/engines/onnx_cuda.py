"""ONNX Runtime on CUDA: tensors that keep their places, and CUDA graphs for the shapes that come again.

A captured graph reads and writes the addresses that it was captured with. So uploads of a shape go to one
buffer, and a stage's outputs for a shape are those of its first run, again and again; what lies there is gone
when the next chain begins. ONNX Runtime keeps graphs per thread and wants all runs in one, so all calls are
made by a thread of this engine's. Each session has an arena of its own: a shared one would lend a graph's
scratch memory to other stages' outputs, which the next replay overwrites.
"""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.engines.failures import failure
from s3diff_runtime.engines.interface import Value, shape_of
from s3diff_runtime.engines.standing import Standing

if TYPE_CHECKING:
    import onnxruntime

T = TypeVar("T")

SETTINGS: Mapping[str, Any] = {
    "cudnn_conv_algo_search": "HEURISTIC",  # trying all of them takes long, for each shape anew
    "arena_extend_strategy": "kSameAsRequested",
}
"""Of ONNX Runtime's provider, but for those that follow from the device and the bundle."""
_GRAPHS = 4
"""Shapes of a stage that get a CUDA graph: tiles, their remainders, a batch or two. Each stays for good."""
_RUNS_BEFORE = 2
"""Of a shape, before its graph is captured: one that comes once is not worth it."""
_BUFFERS = 16
"""Shapes of uploads, and of a stage's outputs, that keep their places."""
_NO_GRAPH = "-1"


class CudaSide:
    """What is different about ONNX Runtime on a GPU; see `OnnxEngine` for the arguments."""

    def __init__(self, ort: ModuleType, index: int, exact: bool) -> None:
        self._ort, self.index = ort, index
        ort.set_default_logger_severity(3)  # errors; each session would warn that it has no plugin device
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()  # CUDA and cuDNN, where pip put them
        self._settings = {**SETTINGS, "device_id": index, "use_tf32": int(not exact)}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxruntime")
        self._uploads = Standing[Any](_BUFFERS)

    def run(self, call: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
        """The result of a call that this engine's thread makes."""
        return self._thread.submit(call, *arguments).result()

    def load(
        self, graph: Path, options: onnxruntime.SessionOptions
    ) -> tuple[onnxruntime.InferenceSession, bool]:
        """Load a graph, and say whether CUDA graphs of it can be captured: not if a node runs on the CPU."""

        def loaded(captures: bool) -> onnxruntime.InferenceSession:
            provider = ("CUDAExecutionProvider", self._settings | {"enable_cuda_graph": int(captures)})
            # Its own fallback would try again without these settings, and say so on standard output.
            return self._ort.InferenceSession(str(graph), options, providers=[provider], enable_fallback=0)

        try:
            return self.run(loaded, True), True
        except Exception:  # the exceptions of ONNX Runtime have no base of their own
            return self.run(loaded, False), False

    def place(self, name: str, array: NDArray[Any]) -> Any:  # noqa: ANN401 - an OrtValue
        """Copy an array to the buffer of its name and shape, which is made where there is none."""
        array, key = np.ascontiguousarray(array), (name, array.shape, array.dtype.str)
        made = self._ort.OrtValue.ortvalue_from_shape_and_type
        value = self._uploads.get(key, partial(made, array.shape, array.dtype, "cuda", self.index))
        value.update_inplace(array)
        return value

    def run_options(self, graph: str) -> onnxruntime.RunOptions:
        """Options of a run that captures or replays the CUDA graph of that number."""
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph)
        return options

    def upload(self, name: str, array: NDArray[Any]) -> Value:
        """See `Lane.upload`."""
        try:
            return self.run(self.place, name, array)
        except Exception as error:  # the exceptions of ONNX Runtime have no base of their own
            raise failure(f"copying {name} to cuda failed", error) from error


@dataclass
class _Place:
    """Where a stage's tensors of one set of input shapes lie."""

    outputs: list[Any]
    addresses: tuple[int, ...]
    """Of the inputs at the last run, or of those that the graph was captured with."""
    runs: int = 1
    """With the same addresses."""
    graph: str = _NO_GRAPH


class CudaSession:
    """A graph in ONNX Runtime on the GPU. Outputs stay there until `numpy.asarray` fetches them."""

    def __init__(
        self, side: CudaSide, session: onnxruntime.InferenceSession, stage: str, captures: bool
    ) -> None:
        self._side, self._session, self._stage, self._captures = side, session, stage, captures
        self._inputs = [each.name for each in session.get_inputs()]
        self._outputs = [each.name for each in session.get_outputs()]
        self._places: OrderedDict[tuple[tuple[int, ...], ...], _Place] = OrderedDict()

    def run(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """See `Session.run`."""
        try:
            return self._side.run(self._run, inputs)
        except Exception as error:  # the exceptions of ONNX Runtime have no base of their own
            raise failure(f"stage {self._stage} failed on cuda", error) from error

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, Value]:
        values: list[Any] = [
            self._side.place(f"{self._stage}/{name}", value) if isinstance(value, np.ndarray) else value
            for name, value in ((name, inputs[name]) for name in self._inputs)
        ]
        key = tuple(shape_of(value) for value in values)
        place = self._places.get(key)
        binding = self._session.io_binding()
        for name, value in zip(self._inputs, values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for number, name in enumerate(self._outputs):
            if place is None:
                binding.bind_output(name, "cuda", self._side.index)
            else:
                binding.bind_ortvalue_output(name, place.outputs[number])
        addresses = tuple(value.data_ptr() for value in values)
        graph = _NO_GRAPH if place is None else self._graph_of(place, addresses)
        options = self._side.run_options(graph) if self._captures else None
        self._session.run_with_iobinding(binding, options)
        if place is None:
            place = _Place(binding.get_outputs(), addresses)
            self._keep(key, place)
        self._places.move_to_end(key)
        return dict(zip(self._outputs, place.outputs, strict=True))

    def _graph_of(self, place: _Place, addresses: tuple[int, ...]) -> str:
        """The number of the CUDA graph to capture or replay, or that of none."""
        if place.graph != _NO_GRAPH:
            return place.graph if place.addresses == addresses else _NO_GRAPH
        place.runs = place.runs + 1 if place.addresses == addresses else 1
        place.addresses = addresses
        captured = sum(each.graph != _NO_GRAPH for each in self._places.values())
        if self._captures and place.runs > _RUNS_BEFORE and captured < _GRAPHS:
            place.graph = str(captured + 1)
        return place.graph

    def _keep(self, key: tuple[tuple[int, ...], ...], place: _Place) -> None:
        """Remember a place; the least recently used that no graph writes to leaves for it."""
        self._places[key] = place
        if len(self._places) > _BUFFERS:
            free = (key for key, each in self._places.items() if each.graph == _NO_GRAPH)
            del self._places[next(free)]

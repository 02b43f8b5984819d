"""The engine `openvino`: OpenVINO on the graphs of a bundle, on the CPU, in bf16 where that has it."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.engines.compiled_graphs import LARGE, CompiledGraphs, keep, read_kept
from s3diff_runtime.engines.cpu_options import CpuOptions, CpuPrecision
from s3diff_runtime.engines.failures import failure, is_want_of_memory, line
from s3diff_runtime.engines.flavours import FlavourTraits
from s3diff_runtime.engines.interface import Value, tensor_problem
from s3diff_runtime.engines.lanes import Lanes
from s3diff_runtime.errors import BundleError, OutOfMemory, RequestError

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest, Model

_DEVICE, _CAPABILITIES = "CPU", "OPTIMIZATION_CAPABILITIES"
Shapes = tuple[tuple[int, ...], ...]
"""Of all inputs, in the stage's order."""
_logger = logging.getLogger(__name__)


def open_engine(
    bundle: Bundle, flavour: FlavourTraits, device: str, cpu: CpuOptions
) -> tuple[OpenVinoEngine, None]:
    """Open OpenVINO, which runs the graphs of any bundle but one of links, as the hub's cache holds.

    Raises:
        RequestError: for such a bundle: OpenVINO reads no weights outside a graph's folder. Else see
            `OpenVinoEngine`.
    """
    if any((bundle.folder / name).is_symlink() for name in bundle.manifest.files):
        raise RequestError(
            f"{bundle.folder} holds links, which OpenVINO does not follow; copy what they lead to "
            "(cp -rL BUNDLE COPY), or use engine onnx"
        )
    return OpenVinoEngine(cpu, bundle), None


class OpenVinoEngine:
    """OpenVINO on the CPU.

    Args:
        cpu: threads and precision.
        bundle: whose compiled graphs are kept for the next process, and whose precision decides what `auto`
            is: f32 on every processor for fp32, which asks for exactness. None keeps nothing.

    Attributes:
        precision: what it computes in, `bf16` or `f32`; inputs, outputs and what follows the last large
            operator of a stage are f32 in any case.

    Raises:
        RequestError: when OpenVINO is not installed, or bf16 is asked of a processor without it.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, cpu: CpuOptions, bundle: Bundle | None = None) -> None:
        self._openvino = _import_openvino()
        self._core = self._openvino.Core()
        self.precision: str | None = self._settled(cpu.cpu_precision, bundle)
        # One stream: a stage uses all threads, and chains of two callers overlap from stage to stage.
        # Threads are free to move: bound ones, of several processes, meet on the same cores.
        self._settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        if cpu.threads:
            self._settings["INFERENCE_NUM_THREADS"] = cpu.threads
        self._kept = bundle and CompiledGraphs(bundle, self._circumstances())
        self.lane = Lanes().lane

    def open(self, graph: Path, stage: Stage) -> OpenVinoSession:
        """See `Engine.open`."""
        from s3diff_runtime.engines.openvino_graphs import held_bytes, is_network, refit

        try:
            model = self._core.read_model(graph)
            refit(model)
            settings = dict(self._settings)
            if not is_network(model):  # conversions would outweigh what little there is to compute
                settings["INFERENCE_PRECISION_HINT"] = "f32"
            compiled_for = partial(self._compiled, graph, model, settings)
            large = held_bytes(model) > LARGE
        except Exception as error:  # whatever goes wrong in OpenVINO is a RuntimeError, or a MemoryError
            if is_want_of_memory(error):
                raise OutOfMemory(f"no memory for {graph} ({line(error)})") from error
            raise BundleError(
                f"OpenVINO {self._openvino.__version__} cannot load {graph} ({line(error)}); "
                "update OpenVINO, use engine onnx, or rebuild the bundle with s3diff-export build"
            ) from error
        for side, ports, specs in (
            ("inputs", model.inputs, stage.inputs),
            ("outputs", model.outputs, stage.outputs),
        ):
            problem = tensor_problem(
                side, _in_words(ports, specs), (f"{spec.name} {spec.dtype}" for spec in specs)
            )
            if problem:
                raise BundleError(f"{graph} {problem}; rebuild the bundle with s3diff-export build")
        return OpenVinoSession(self._openvino, compiled_for, stage, graph.stem, large)

    def _compiled(
        self, graph: Path, model: Model, settings: Mapping[str, Any], shapes: Shapes | None
    ) -> CompiledModel:
        """Compile a graph, for inputs of certain shapes or of any, or load what was kept of it."""
        file = self._kept and self._kept.file_of(graph, [str(sorted(settings.items())), str(shapes)])
        kept = file and read_kept(file)
        if kept:
            try:
                return self._core.import_model(kept, _DEVICE, settings)
            except RuntimeError as error:
                _logger.info("%s is compiled anew: %s", graph, line(error))
        if shapes is not None:
            model = model.clone()
            model.reshape(dict(enumerate(map(list, shapes))))
        compiled = self._core.compile_model(model, _DEVICE, settings)
        if file:
            try:
                keep(file, compiled.export_model().getvalue())
            except RuntimeError as error:  # of export; what was compiled serves all the same
                _logger.info("%s is not kept: %s", graph, line(error))
        return compiled

    def _circumstances(self) -> list[str]:
        """What decides how a graph is compiled, besides the graph, its settings and shapes."""
        from s3diff_runtime.engines import openvino_graphs

        rewriting = hashlib.sha256(Path(openvino_graphs.__file__).read_bytes()).hexdigest()
        processor = [
            str(self._core.get_property(_DEVICE, name)) for name in ("FULL_DEVICE_NAME", _CAPABILITIES)
        ]
        return [self._openvino.get_version(), rewriting, *processor]

    def _settled(self, asked: CpuPrecision, bundle: Bundle | None) -> str:
        has_bf16 = "BF16" in self._core.get_property(_DEVICE, _CAPABILITIES)
        if asked == "bf16" and not has_bf16:
            raise RequestError(
                "cpu_precision is bf16, and this processor has no instructions for it; "
                "leave it out, or use --cpu-precision f32"
            )
        if asked != "auto":
            return asked
        exact = bundle is not None and bundle.manifest.precision == "fp32"
        return "bf16" if has_bf16 and not exact else "f32"


class OpenVinoSession:
    """A graph, compiled for the shapes that come first, and for all others once more.

    Of known shapes OpenVINO makes faster graphs: the small model's UNet takes a sixth less time.

    Args:
        openvino: the module.
        compiled_for: compiles the graph, for inputs of certain shapes or of any.
        stage: what the manifest says of it.
        name: of the stage.
        large: whether its weights are too many to be held twice: then the graph for any shapes takes the
            place of the first.
    """

    def __init__(
        self,
        openvino: ModuleType,
        compiled_for: Callable[[Shapes | None], CompiledModel],
        stage: Stage,
        name: str,
        large: bool = False,
    ) -> None:
        self._openvino, self._compiled_for, self._name, self._large = openvino, compiled_for, name, large
        self._inputs = [spec.name for spec in stage.inputs]
        self._outputs = [(spec.name, _least(spec.shape)) for spec in stage.outputs]
        self._lock = Lock()
        self._graphs: dict[Shapes | None, _Requests] = {}

    def run(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """See `Session.run`."""
        # `order` keeps scalars scalars.
        arrays = [np.asarray(inputs[name], order="C") for name in self._inputs]
        try:
            requests = self._requests_for(tuple(array.shape for array in arrays))
            with requests.one() as request:
                for index, array in enumerate(arrays):  # which have to live until the request has run
                    request.set_input_tensor(index, self._openvino.Tensor(array, shared_memory=True))
                tensors = {}
                for index, (name, least) in enumerate(self._outputs):  # new ones, which the caller keeps
                    port = requests.graph.outputs[index]
                    known = port.partial_shape.is_static
                    # One of unknown shape is grown by OpenVINO.
                    shape = port.shape if known else self._openvino.Shape(least)
                    tensors[name] = self._openvino.Tensor(port.element_type, shape)
                    request.set_output_tensor(index, tensors[name])
                request.infer()
            return {name: tensor.data for name, tensor in tensors.items()}
        except Exception as error:  # whatever goes wrong in OpenVINO is a RuntimeError, or a MemoryError
            raise failure(f"stage {self._name} failed on {OpenVinoEngine.device}", error) from error

    def _requests_for(self, shapes: Shapes) -> _Requests:
        with self._lock:
            key = shapes if shapes in self._graphs or not self._graphs else None
            if key not in self._graphs:
                if self._large:
                    self._graphs.clear()
                self._graphs[key] = _Requests(self._compiled_for(key))
            return self._graphs[key]


class _Requests:
    """A compiled graph and its idle requests, which keep the memory that they work in: making it anew took
    a tenth of a call.
    """

    def __init__(self, graph: CompiledModel) -> None:
        self.graph = graph
        self._idle: deque[InferRequest] = deque()

    @contextmanager
    def one(self) -> Iterator[InferRequest]:
        """A request that nobody else uses within. One that failed is not used again."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.graph.create_infer_request()
        yield request
        self._idle.append(request)


def _import_openvino() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise RequestError("OpenVINO is not installed: pip install 's3diff-export[cpu]'") from error
    return openvino


def _least(shape: Sequence[int | str]) -> list[int]:
    """A static shape, or an empty one that is grown."""
    fixed = [side for side in shape if isinstance(side, int)]
    return fixed if len(fixed) == len(shape) else [0] * len(shape)


def _in_words(ports: Sequence[Any], specs: Sequence[TensorSpec]) -> Iterator[str]:
    """Name and type of each port; of several names, the manifest's where it is one of them."""
    for port, spec in zip_longest(ports, specs):
        if port is not None:
            names = port.get_names()
            name = spec.name if spec and spec.name in names else min(names, default="no name")
            yield f"{name} {port.element_type.to_dtype().name}"

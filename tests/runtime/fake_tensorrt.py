"""Stands in for the modules of TensorRT.

A plan of this TensorRT is the ONNX graph with a profile before it; it is computed by ONNX Runtime, on the
memory of `FakeCuda` and when its stream gets there. Like the real one it returns None or False and logs, and
what would be undefined there is a `Violation` here.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import sys
import weakref
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tests.runtime.fake_cuda import FakeCuda, Op

from s3diff_runtime.engines.flavours import COMPILED_FLAVOURS, FLAVOURS

VERSION = "10.13.2.6"
PLAN_MAGIC = b"fake plan "
_DTYPES = {"uint8": "UINT8", "int64": "INT64", "float": "FLOAT", "float16": "HALF"}
_NUMPY = {"UINT8": "uint8", "INT64": "int64", "FLOAT": "float32", "HALF": "float16"}
_SCRATCH_PER_BYTE = 3


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class DataType(Enum):
    FLOAT, HALF, UINT8, INT64 = range(4)


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER, NONE = range(3)


class IRuntimeCache:
    """Its content is the shapes that kernels were compiled for."""

    def __init__(self) -> None:
        self.content: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.content)).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            self.content |= set(json.loads(blob))
        except ValueError:
            return False
        return True


class ILogger:
    Severity = Severity

    def log(self, severity: Enum, message: str) -> None:
        raise NotImplementedError


@cache
def _onnx(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Runtime:
    def __init__(self, cuda: FakeCuda, logger: ILogger) -> None:
        cuda.require(cuda.calls["cudaGetDeviceCount"], "the process ends: nobody looked for a GPU")
        self._cuda, self._logger = cuda, logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if not plan.startswith(PLAN_MAGIC):
            self._logger.log(Severity.ERROR, "Serialization assertion\n failed")
            return None
        try:
            return ICudaEngine(self._cuda, self._logger, plan)
        except MemoryError:
            self._logger.log(Severity.ERROR, "Requested amount of GPU memory could not be allocated")
            return None


class ICudaEngine:
    """Its weights take device memory, which must outlive all queued work that reads them."""

    def __init__(self, cuda: FakeCuda, logger: ILogger, plan: bytes) -> None:
        header, _, self.graph = plan.removeprefix(PLAN_MAGIC).partition(b"\n")
        self.profiles: list[dict[str, list[list[int]]]] = json.loads(header)
        self.compiled: list[str] = []
        """Shapes that kernels were compiled for because no cache had them."""
        self.cuda, self.logger, session = cuda, logger, _onnx(self.graph)
        self.inputs = {tensor.name: tensor.type[7:-1] for tensor in session.get_inputs()}
        self.outputs = {tensor.name: tensor.type[7:-1] for tensor in session.get_outputs()}
        self.fixed = {
            tensor.name: tuple(side if isinstance(side, int) else -1 for side in tensor.shape)
            for tensor in (*session.get_inputs(), *session.get_outputs())
        }
        error, address = cuda.cudaMalloc(len(plan))
        if error != cuda.cudaError_t.cudaSuccess:
            raise MemoryError
        self.weights = cuda.blocks[address]
        weakref.finalize(self, cuda.cudaFree, address)

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_DTYPES[(self.inputs | self.outputs)[name]]]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.fixed[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        self.cuda.require(-1 in self.fixed[name], f"profiles know nothing of {name}, whose shape is fixed")
        return self.profiles[profile_index][name]

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 256

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: object) -> IExecutionContext:
        strategy = how.allocation if isinstance(how, IRuntimeConfig) else how
        self.cuda.require(
            strategy is ExecutionContextAllocationStrategy.USER_MANAGED, "context with memory of its own"
        )
        return IExecutionContext(self, how.cache if isinstance(how, IRuntimeConfig) else None)


class IRuntimeConfig:
    def __init__(self) -> None:
        self.allocation = ExecutionContextAllocationStrategy.STATIC
        self.cache: IRuntimeCache | None = None
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, cache: IRuntimeCache | None) -> None:
        self._engine, self._cuda, self._cache = engine, engine.cuda, cache
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._needed: int | None = None
        self._is_settled = False
        self._changes = 0
        """Of shapes: a graph serves those alone that it was captured with."""
        self._queued = object()
        weakref.finalize(self, self._cuda.require_unused, self._queued, "a context was freed while it runs")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._cuda.require(
            self._cuda.streams[stream_handle].captured is None, "a profile was chosen in a capture"
        )
        self._profile, self._shapes, self._needed = profile_index, {}, None
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        least, _tuned, most = self._engine.profiles[self._profile][name]
        fits = len(shape) == len(least) and all(
            low <= side <= high for low, side, high in zip(least, shape, most, strict=True)
        )
        if not fits:
            self._engine.logger.log(Severity.ERROR, f"{name}: {shape} does not satisfy the profile")
            return False
        if self._shapes.get(name) != tuple(shape):
            self._is_settled, self._needed = False, None
            self._changes += 1
        self._shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        self._cuda.require(set(self._shapes) == set(self._engine.inputs), "input shapes are missing")
        sizes = (math.prod(shape) for shape in self._shapes.values())
        self._needed = 256 + _SCRATCH_PER_BYTE * max(sizes)
        return self._needed

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        return _output_shapes(self._engine.graph, tuple(self._shapes.items()))[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._cuda.block(memory, size, "device")
        self._memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, engine, (scratch, size) = self._cuda, self._engine, self._memory
        with cuda.lock:
            tensors = {**engine.inputs, **engine.outputs}
            cuda.require(set(self._addresses) == set(tensors), "addresses are missing")
            cuda.require(self._needed is not None and size >= self._needed, "too little scratch memory")
            if not self._is_settled and cuda.streams[stream_handle].captured is not None:
                engine.logger.log(Severity.ERROR, "shapes changed: run once before capturing")
                return False
            views = {name: self._described(name) for name in tensors}
            blocks = [cuda.block(address, length, "device") for address, _, _, length in views.values()]
            blocks += [cuda.block(scratch, size, "device"), engine.weights]
            for other, op in cuda.pending():
                shared = any(block in op.blocks for block in blocks[:-1])
                cuda.require(other == stream_handle or not shared, "two streams share memory")
            inputs = {name: views[name][:3] for name in engine.inputs}
            outputs = {name: views[name][:3] for name in engine.outputs}
            run = partial(_compute, engine.graph, inputs, outputs, (scratch, size))
            captured, changes = weakref.ref(self), self._changes

            def is_current() -> bool:
                context = captured()
                return context is not None and context._changes == changes

            self._compile()
            cuda.enqueue(stream_handle, Op(run, blocks, (self._queued,), is_current))
            self._is_settled = True
        return True

    def _compile(self) -> None:
        """Kernels for new shapes, where there is a cache for them; without, the build compiled them."""
        shapes = f"{hashlib.sha256(self._engine.graph).hexdigest()} {sorted(self._shapes.items())}"
        if self._cache is not None and shapes not in self._cache.content:
            self._cache.content.add(shapes)
            self._engine.compiled.append(shapes)

    def _described(self, name: str) -> tuple[int, tuple[int, ...], str, int]:
        """Address, shape, dtype and bytes."""
        dtype = _NUMPY[self._engine.get_tensor_dtype(name).name]
        shape = self.get_tensor_shape(name)
        return self._addresses[name], shape, dtype, math.prod(shape) * np.dtype(dtype).itemsize


Sides = tuple[int, ...]
Described = tuple[int, Sides, str]


def _compute(
    graph: bytes, inputs: Mapping[str, Described], outputs: Mapping[str, Described], scratch: tuple[int, int]
) -> None:
    """Every byte of scratch memory is overwritten, so that whoever keeps something there sees it."""
    given = {name: _memory(*described).copy() for name, described in inputs.items()}
    ctypes.memset(scratch[0], 0x5A, scratch[1])
    session = _onnx(graph)
    for (_name, described), value in zip(outputs.items(), session.run(list(outputs), given), strict=True):
        _memory(*described)[...] = value


def _memory(address: int, shape: tuple[int, ...], dtype: str) -> Any:  # noqa: ANN401
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)


@cache
def _output_shapes(graph: bytes, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Sides]:
    session, sizes = _onnx(graph), dict(shapes)
    given = {
        tensor.name: np.zeros(sizes[tensor.name], _NUMPY[_DTYPES[tensor.type[7:-1]]])
        for tensor in session.get_inputs()
    }
    names = [tensor.name for tensor in session.get_outputs()]
    return {name: value.shape for name, value in zip(names, session.run(names, given), strict=True)}


def fake_tensorrt(cuda: FakeCuda, version: str = VERSION) -> ModuleType:
    """The module."""
    module = ModuleType("fake_tensorrt")
    vars(module).update(
        __version__=version,
        Runtime=partial(Runtime, cuda),
        ILogger=ILogger,
        TensorIOMode=TensorIOMode,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy=DynamicShapesKernelSpecializationStrategy,
    )
    return module


def install_fakes(
    monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, versions: Mapping[str, str] | None = None
) -> None:
    """Let the runtime find these GPUs, and the packages of TensorRT that `versions` names (default: all)."""
    packages = [FLAVOURS[flavour].package for flavour in COMPILED_FLAVOURS]
    found = dict.fromkeys(packages, VERSION) if versions is None else versions
    for name in packages:
        module = fake_tensorrt(cuda, found[name]) if name in found else None
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("cuda.bindings.runtime", cuda)

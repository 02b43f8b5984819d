"""What differs between TensorRT 10, TensorRT 11 and TensorRT-RTX where both running and building meet it.

Only what exists in all three is called; enumerators are taken by name, because their numbers differ. Nothing
here may run before a GPU and its driver were seen (`tensorrt.cuda`), but for a flavour that builds without:
where they lack, the library does not raise, it ends the process.
"""

import importlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from s3diff_runtime.engines.flavours import FLAVOURS, CompiledFlavour
from s3diff_runtime.engines.tensorrt.messages import Messages, collector
from s3diff_runtime.errors import JobError, OutOfMemory, RequestError

_DTYPES = {"UINT8": "uint8", "INT64": "int64", "HALF": "float16", "FLOAT": "float32"}
_NO_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|allocat|cudaMalloc", re.IGNORECASE)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class IoTensor:
    """An input or output of an engine."""

    name: str
    dtype: str
    """As in the manifest; the name that TensorRT has for it where the manifest has none."""
    is_input: bool
    least: Shape
    """Smallest shape that the engine takes; inputs alone have limits."""
    most: Shape


class TensorRt:
    """A flavour of TensorRT, imported; no object of it is made before a method needs one.

    Attributes:
        name, flavour: its name, and its row of the table.
        module: the package.
        version: as the package says, and as engines record it.

    Raises:
        RequestError: when it is not installed, or its libraries do not load.
    """

    def __init__(self, flavour: CompiledFlavour) -> None:
        self.name: CompiledFlavour = flavour
        self.flavour = FLAVOURS[flavour]
        try:
            self.module: Any = importlib.import_module(self.flavour.package)
        except (ImportError, OSError) as error:
            raise RequestError(
                f"the engine {flavour} needs the package {self.flavour.package} ({error}): "
                f"pip install 's3diff-export[{self.flavour.extra}]'"
            ) from error
        self.version = str(self.module.__version__)

    def __str__(self) -> str:
        """Flavour and version."""
        return f"{self.name} {self.version}"

    @property
    def logger(self) -> Any:  # noqa: ANN401
        """What TensorRT's objects take."""
        return collector(self.module)[0]

    @property
    def messages(self) -> Messages:
        """What they said. Clear them before a call whose failure is to be explained."""
        return collector(self.module)[1]

    def deserialize(self, plan: bytes) -> Any:  # noqa: ANN401 - an ICudaEngine
        """Load a plan. It runs as code: the caller must have checked its hash.

        Raises:
            OutOfMemory: when the GPU has no room for its weights.
            JobError: when TensorRT refuses it, with what TensorRT says.
        """
        self.messages.clear()
        engine = self._runtime.deserialize_cuda_engine(plan)
        self.require(engine is not None, "loading the engine")
        return engine

    def tensors(self, engine: Any) -> list[IoTensor]:  # noqa: ANN401
        """Inputs and outputs of an engine, in its order."""
        found = []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            is_input = engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT
            least, _tuned, most = engine.get_tensor_profile_shape(name, 0) if is_input else ((), (), ())
            dtype = dtype_name(engine.get_tensor_dtype(name))
            found.append(IoTensor(name, dtype, is_input, tuple(least), tuple(most)))
        return found

    def make_context(self, engine: Any) -> Any:  # noqa: ANN401 - an IExecutionContext
        """What runs an engine, without memory of its own: see `set_device_memory`.

        A flavour that compiles its kernels on the GPU does so at once for every new shape, because a CUDA
        graph would keep the slower ones that serve until a compilation in the background ends.

        Raises:
            JobError: when TensorRT refuses; `OutOfMemory` for want of memory.
        """
        self.messages.clear()
        by_user = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.flavour.compiles_on_device:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(by_user)
            strategies = self.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(by_user)
        self.require(context is not None, "making an execution context")
        return context

    def require(self, succeeded: bool, doing: str) -> None:
        """Raise `JobError` or `OutOfMemory`, with what TensorRT said, when a call of it did not succeed."""
        if not succeeded:
            reason = self.messages.reason()
            self.messages.clear()
            kind = OutOfMemory if _NO_MEMORY.search(reason) else JobError
            raise kind(f"{self} failed {doing}: {reason}")

    @cached_property
    def _runtime(self) -> Any:  # noqa: ANN401
        return self.module.Runtime(self.logger)


def dtype_name(dtype: Any) -> str:  # noqa: ANN401 - a DataType
    """A type of TensorRT as the manifest calls it; as TensorRT does where the manifest has no name for it."""
    return _DTYPES.get(dtype.name, dtype.name)


def version_numbers(version: str) -> tuple[int, ...]:
    """A version for comparisons."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())

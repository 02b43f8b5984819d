"""What differs between TensorRT 10, TensorRT 11 and TensorRT-RTX where both running and building meet it.

Only what exists in all three is called; enumerators are taken by name, because their numbers differ. Nothing
here may run before a GPU and its driver were seen (`tensorrt.cuda`), but for a flavour that builds without:
where they lack, the library does not raise, it ends the process.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from s3diff_runtime.engines.flavours import FLAVOURS, CompiledFlavour
from s3diff_runtime.engines.tensorrt.kernels import KernelCache
from s3diff_runtime.engines.tensorrt.messages import Messages, collector
from s3diff_runtime.errors import JobError, OutOfMemory, RequestError

_DTYPES = {"UINT8": "uint8", "INT64": "int64", "HALF": "float16", "FLOAT": "float32"}
_NO_MEMORY = re.compile(
    r"\bout of memory\b|\bOutOfMemory\b|cudaErrorMemoryAllocation|memory .*could not be allocated",
    re.IGNORECASE,
)
"""What TensorRT and its allocator say when memory runs out; words such as allocation alone say nothing."""

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class IoTensor:
    """An input or output of an engine."""

    name: str
    dtype: str
    """As in the manifest; the name that TensorRT has for it where the manifest has none."""
    is_input: bool
    limits: tuple[tuple[Shape, Shape], ...]
    """Smallest and largest shape in each profile of the engine; inputs alone have limits."""

    def takes(self, shape: Shape, profile: int) -> bool:
        """Whether the input may have this shape in a profile."""
        least, most = self.limits[profile]
        return len(shape) == len(least) and all(
            low <= side <= high for low, side, high in zip(least, shape, most, strict=True)
        )


class TensorRt:
    """A flavour of TensorRT, imported; no object of it is made before a method needs one.

    Attributes:
        name, flavour: its name, and its row of the table.
        module: the package.
        version: as the package says, and as engines record it.
        kernels: those that it compiles on the GPU, where it does and they are kept.

    Raises:
        RequestError: when it is not installed, or its libraries do not load.
    """

    def __init__(self, flavour: CompiledFlavour) -> None:
        self.name: CompiledFlavour = flavour
        self.flavour = FLAVOURS[flavour]
        self.kernels: KernelCache | None = None
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
        """What they said in this thread since the last call that `ask` made."""
        return collector(self.module)[1]

    def deserialize(self, plan: bytes) -> Any:  # noqa: ANN401 - an ICudaEngine
        """Load a plan. It runs as code: the caller must have checked its hash.

        Raises:
            OutOfMemory: when the GPU has no room for its weights.
            JobError: when TensorRT refuses it, with what TensorRT says.
        """
        return self.ask("loading the engine", self._runtime.deserialize_cuda_engine, plan)

    def tensors(self, engine: Any) -> list[IoTensor]:  # noqa: ANN401
        """Inputs and outputs of an engine, in its order."""
        found = []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            is_input = engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT
            limits = _limits(engine, name) if is_input else ()
            found.append(IoTensor(name, dtype_name(engine.get_tensor_dtype(name)), is_input, limits))
        return found

    def make_context(self, engine: Any, profile: int, stream: int) -> Any:  # noqa: ANN401
        """An IExecutionContext for one profile, without memory of its own: see `set_device_memory`.

        A flavour that compiles its kernels on the GPU does so at once for every new shape, because a CUDA
        graph would keep the slower ones that serve until a compilation in the background ends.

        Args:
            engine: an ICudaEngine.
            profile: its number in the engine.
            stream: that the context is to run on.

        Raises:
            JobError: when TensorRT refuses; `OutOfMemory` for want of memory.
        """
        by_user = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.flavour.compiles_on_device:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(by_user)
            strategies = self.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            if self.kernels is not None:
                self.kernels.attach(config)
        how = config if self.flavour.compiles_on_device else by_user
        context = self.ask("making an execution context", engine.create_execution_context, how)
        if profile:  # a new context has the first
            self.ask("choosing a profile", context.set_optimization_profile_async, profile, stream)
        return context

    def ask(self, doing: str, call: Callable[..., T | None], *arguments: object) -> T:
        """What a call of TensorRT gives. What was said before it explains nothing of its failure.

        Raises:
            JobError: when it gives None or False, with what TensorRT says; `OutOfMemory` for want of memory.
        """
        self.messages.clear()
        answer = call(*arguments)
        if answer is None or answer is False:
            raise self.failure(doing)
        return answer

    def failure(self, doing: str) -> JobError:
        """The error for a call that did not do what it should, with what TensorRT has said in it."""
        reason = self.messages.reason()
        self.messages.clear()
        kind = OutOfMemory if _NO_MEMORY.search(reason) else JobError
        return kind(f"{self} failed {doing}: {reason}")

    @cached_property
    def _runtime(self) -> Any:  # noqa: ANN401
        return self.module.Runtime(self.logger)


def _limits(engine: Any, name: str) -> tuple[tuple[Shape, Shape], ...]:  # noqa: ANN401
    """Of an input, in each profile; profiles know nothing of inputs whose shape is fixed."""
    fixed, count = tuple(engine.get_tensor_shape(name)), engine.num_optimization_profiles
    if min(fixed, default=0) >= 0:
        return ((fixed, fixed),) * count
    shapes = (engine.get_tensor_profile_shape(name, profile) for profile in range(count))
    return tuple((tuple(least), tuple(most)) for least, _tuned, most in shapes)


def dtype_name(dtype: Any) -> str:  # noqa: ANN401 - a DataType
    """A type of TensorRT as the manifest calls it; as TensorRT does where the manifest has no name for it."""
    return _DTYPES.get(dtype.name, dtype.name)


def version_numbers(version: str) -> tuple[int, ...]:
    """A version for comparisons."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())

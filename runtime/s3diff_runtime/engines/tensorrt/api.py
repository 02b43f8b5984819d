"""What differs at run time between TensorRT 10, TensorRT 11 and TensorRT-RTX, and the little that does not.

Only what exists in all three is called; enumerators are taken by name, because their numbers differ. Nothing
here may run before a GPU and its driver were seen (`tensorrt.cuda`): without them the library does not raise,
it ends the process.
"""

from __future__ import annotations

import importlib
import re
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from s3diff_runtime.bundle.engine_records import Flavour
from s3diff_runtime.errors import JobError, OutOfMemory, RequestError

_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
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
    least: Shape = ()
    """Smallest shape that the engine takes; inputs alone have limits."""
    most: Shape = ()


class TensorRt:
    """One flavour of TensorRT on the current GPU.

    Attributes:
        version: as the module says, and as engines record it.

    Args:
        flavour: which.
        module: `tensorrt` or `tensorrt_rtx`, or what stands in for it.
    """

    def __init__(self, flavour: Flavour, module: Any) -> None:  # noqa: ANN401 - has no annotations
        """Makes no object of TensorRT; `deserialize` does."""
        self.flavour, self._module = flavour, module
        self.version = str(module.__version__)
        self._errors: deque[str] = deque(maxlen=8)

    @classmethod
    def load(cls, flavour: Flavour) -> TensorRt:
        """Import a flavour. Raises `RequestError` when it is not installed, or its libraries do not load."""
        try:
            return cls(flavour, importlib.import_module(_MODULES[flavour]))
        except (ImportError, OSError) as error:
            raise RequestError(
                f"the engine {flavour} needs the package {_MODULES[flavour]} ({error}): "
                f"pip install 's3diff-export[{flavour}]'"
            ) from error

    def deserialize(self, plan: bytes) -> Any:  # noqa: ANN401 - an ICudaEngine
        """Load a plan. It runs as code: the caller must have checked its hash.

        Raises:
            OutOfMemory: when the GPU has no room for its weights.
            JobError: when TensorRT refuses it, with what TensorRT says.
        """
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.failure("loading the engine")
        return engine

    def tensors(self, engine: Any) -> list[IoTensor]:  # noqa: ANN401
        """Inputs and outputs of an engine, in its order."""
        return [
            self._tensor(engine, engine.get_tensor_name(number)) for number in range(engine.num_io_tensors)
        ]

    def make_context(self, engine: Any) -> Any:  # noqa: ANN401 - an IExecutionContext
        """What runs an engine, without memory of its own: see `set_device_memory`.

        TensorRT-RTX compiles its kernels on the GPU. It does so at once for every new shape, because a CUDA
        graph would keep the slower ones that serve until a compilation in the background ends.

        Raises:
            JobError: when TensorRT refuses; `OutOfMemory` for want of memory.
        """
        by_user = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.flavour == "tensorrt-rtx":
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(by_user)
            strategies = self._module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(by_user)
        if context is None:
            raise self.failure("making an execution context")
        return context

    def require(self, succeeded: bool, doing: str) -> None:
        """Raise what `failure` gives when a call of TensorRT returned False."""
        if not succeeded:
            raise self.failure(doing)

    def failure(self, doing: str) -> JobError:
        """The error for a call that failed, with the messages of TensorRT since the last one."""
        messages = []
        while self._errors:
            messages.append(self._errors.popleft())
        reason = " | ".join(messages) or "it gave no reason"
        kind = OutOfMemory if _NO_MEMORY.search(reason) else JobError
        return kind(f"{self.flavour} {self.version} failed {doing}: {reason[:600]}")

    def _tensor(self, engine: Any, name: str) -> IoTensor:  # noqa: ANN401
        dtype = engine.get_tensor_dtype(name).name
        dtype = _DTYPES.get(dtype, dtype)
        if engine.get_tensor_mode(name) != self._module.TensorIOMode.INPUT:
            return IoTensor(name, dtype, is_input=False)
        least, _tuned, most = engine.get_tensor_profile_shape(name, 0)
        return IoTensor(name, dtype, True, tuple(least), tuple(most))

    @cached_property
    def _runtime(self) -> Any:  # noqa: ANN401
        return self._module.Runtime(self._logger)

    @cached_property
    def _logger(self) -> Any:  # noqa: ANN401
        """Collects errors: TensorRT returns None or False and says the reason only here."""
        module, errors = self._module, self._errors
        severe = (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR)

        class Collector(module.ILogger):  # type: ignore[name-defined]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: object, message: str) -> None:
                if severity in severe:
                    errors.append(" ".join(message.split()))

        return Collector()

"""Everything in which building differs between TensorRT 10, TensorRT 11 and TensorRT-RTX.

| | 10 | 11 | RTX |
| --- | --- | --- | --- |
| typed networks | flag `STRONGLY_TYPED` | always | always |
| timing cache, hardware compatibility | yes | yes | no |
| target | the GPU of the machine | the GPU of the machine | compute capabilities, no GPU needed |

Enumerators are taken by name: their numbers differ between versions. `tests/export/tensorrt_names.json` has
the names of the real bindings, and the tests drive this module through them.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from s3diff_export.engines.messages import Messages, collector
from s3diff_export.engines.options import EngineOptions
from s3diff_runtime.bundle.engine_records import Flavour
from s3diff_runtime.engines.tensorrt.cuda import Cuda, Gpu, load_runtime
from s3diff_runtime.errors import RequestError, S3DiffError

MODULES: Final[dict[Flavour, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST: Final[dict[Flavour, tuple[int, int]]] = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 2)}
DTYPES: Final = {"UINT8": "uint8", "INT64": "int64", "HALF": "float16", "FLOAT": "float32"}
_MIB = 2**20


@dataclass(frozen=True)
class TensorRt:
    """One flavour of TensorRT, found on this machine and fit to build what the options ask for."""

    flavour: Flavour
    module: Any
    """`tensorrt` or `tensorrt_rtx`."""
    gpu: Gpu | None
    """That engines are tuned on; None for TensorRT-RTX, which needs none."""

    @classmethod
    def find(cls, options: EngineOptions) -> TensorRt:
        """Import the options' flavour and check that it can do what they ask; makes no object of it.

        Raises:
            RequestError: when the package is missing or too old, there is no GPU for a flavour that needs
                one, or the flavour knows no such target.
        """
        flavour = options.flavour
        module = _import(flavour)
        tensorrt = cls(flavour, module, gpu=None if flavour == "tensorrt-rtx" else _find_gpu())
        oldest = _OLDEST[flavour]
        if tensorrt.numbers[:2] < oldest:
            raise RequestError(
                f"{flavour} {tensorrt.version} is too old, expected {oldest[0]}.{oldest[1]} or later: "
                f"pip install --upgrade 's3diff-export[{flavour}]'"
            )
        if flavour == "tensorrt-rtx":
            tensorrt._capabilities(options.targets)
        return tensorrt

    @property
    def version(self) -> str:
        """As engines record it."""
        return str(self.module.__version__)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version for comparisons."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version))

    @property
    def logger(self) -> Any:  # noqa: ANN401
        """What TensorRT's objects take."""
        return collector(self.module)[0]

    @property
    def messages(self) -> Messages:
        """What they said."""
        return collector(self.module)[1]

    def network(self, builder: Any) -> Any:  # noqa: ANN401 - an INetworkDefinition
        """An empty network whose types are those of its tensors, never chosen by TensorRT."""
        flags = 0
        if self.flavour == "tensorrt" and self.numbers[0] == 10:
            flags = 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return builder.create_network(flags)

    def configure(self, builder: Any, options: EngineOptions) -> Any:  # noqa: ANN401 - an IBuilderConfig
        """A configuration with the options' settings.

        Raises:
            RequestError: when the timing cache belongs to another TensorRT or GPU.
        """
        config = builder.create_builder_config()
        config.builder_optimization_level = options.optimization_level
        if options.workspace_mib is not None:
            workspace = self.module.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(workspace, options.workspace_mib * _MIB)
        if self.flavour == "tensorrt-rtx":
            targets = self._capabilities(options.targets)
            config.num_compute_capabilities = len(targets)
            for number, target in enumerate(targets):
                config.set_compute_capability(target, number)
            return config
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(self.module.HardwareCompatibilityLevel, level)
        if options.timing_cache is not None:
            self._read_timing_cache(config, options.timing_cache)
        return config

    def _read_timing_cache(self, config: Any, path: Path) -> None:  # noqa: ANN401
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise RequestError(f"could not read the timing cache {path}: {error.strerror}") from error
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, False):
            raise RequestError(
                f"{path} is no timing cache of {self.flavour} {self.version} for this GPU "
                f"({self.messages.reason()}); delete it, or name another --timing-cache"
            )

    def _capabilities(self, targets: tuple[str, ...]) -> list[Any]:
        """The enumerators of compute capabilities. Raises `RequestError` for those it cannot build for."""
        known = {
            name: value
            for name, value in self.module.ComputeCapability.__members__.items()
            if name.startswith("SM")
        }
        names = {target: f"SM{target.replace('.', '')}" for target in targets}
        unknown = [target for target, name in names.items() if name not in known]
        if unknown:
            served = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in sorted(known, key=_number))
            raise RequestError(
                f"{self.flavour} {self.version} cannot build for compute capability {', '.join(unknown)}; "
                f"expected some of {served}"
            )
        return [known[name] for name in names.values()]


def _number(name: str) -> int:
    return int(name[2:])


def _import(flavour: Flavour) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(MODULES[flavour])
    except (ImportError, OSError) as error:
        raise RequestError(
            f"the engine {flavour} needs the package {MODULES[flavour]} ({error}): "
            f"pip install 's3diff-export[{flavour}]'"
        ) from error


def _find_gpu() -> Gpu:
    """The GPU that TensorRT builds for: the first. Without one its library would end the process."""
    try:
        return Cuda(load_runtime()).gpu
    except S3DiffError as error:
        raise RequestError(
            f"--engine tensorrt builds on the GPU that is to run the engines: {error}; "
            "--engine tensorrt-rtx builds without one, for RTX cards"
        ) from error

"""Everything in which building differs between TensorRT 10, TensorRT 11 and TensorRT-RTX.

| | 10 | 11 | RTX |
| --- | --- | --- | --- |
| typed networks | flag `STRONGLY_TYPED` | always | always |
| timing cache, hardware compatibility | yes | yes | no |
| version-compatible engines | yes | yes | no |
| target | the GPU of the machine | the GPU of the machine | compute capabilities, no GPU needed |

Enumerators are taken by name: their numbers differ between versions. `tests/export/tensorrt_names.json` has
the names of the real bindings, and the tests drive this module through them.
"""

from pathlib import Path
from typing import Any

from s3diff_export.engines.options import EngineOptions
from s3diff_runtime.engines.tensorrt.api import TensorRt, version_numbers
from s3diff_runtime.errors import RequestError
from s3diff_runtime.files import replacing
from s3diff_runtime.vocabulary import Precision

_MIB = 2**20


def require_version(tensorrt: TensorRt) -> None:
    """Raise `RequestError` for a version that is too old to build with."""
    oldest = tensorrt.flavour.oldest
    if version_numbers(tensorrt.version)[:2] < oldest:
        raise RequestError(
            f"{tensorrt} is too old, expected {oldest[0]}.{oldest[1]} or later: "
            f"pip install --upgrade 's3diff-export[{tensorrt.flavour.extra}]'"
        )


def typed_network(tensorrt: TensorRt, builder: Any) -> Any:  # noqa: ANN401 - an INetworkDefinition
    """An empty network whose types are those of its tensors, never chosen by TensorRT."""
    flags = 0
    if version_numbers(tensorrt.version)[0] < tensorrt.flavour.typed_since:
        flags = 1 << int(tensorrt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder.create_network(flags)


def configuration(
    tensorrt: TensorRt,
    builder: Any,  # noqa: ANN401
    options: EngineOptions,
    precision: Precision,
    timings: "TimingCache",
) -> Any:  # noqa: ANN401 - an IBuilderConfig
    """The settings of a build, for a bundle of some precision.

    Raises:
        RequestError: when the timing cache belongs to another TensorRT or GPU.
    """
    config, lacks = builder.create_builder_config(), tensorrt.flavour.lacks
    flags = tensorrt.module.BuilderFlag
    if precision == "fp32":
        config.clear_flag(flags.TF32)  # set by default: products of fp32 rounded to ten bits
    if tensorrt.flavour.compiles_on_device:
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)  # else not every stage can be captured in a CUDA graph
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)  # code of the host, which no plan of ours brings along
    config.builder_optimization_level = options.optimization_level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(tensorrt.module.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if "compute_capabilities" not in lacks:
        targets = compute_capabilities(tensorrt, options.targets)
        config.num_compute_capabilities = len(targets)
        for number, target in enumerate(targets):
            config.set_compute_capability(target, number)
    if "hardware_compatibility" not in lacks:
        levels = tensorrt.module.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(levels, options.hardware_compatibility.upper())
    if "timing_cache" not in lacks:
        timings.lend(tensorrt, config)
    return config


def compute_capabilities(tensorrt: TensorRt, targets: tuple[str, ...]) -> list[Any]:
    """The enumerators of targets such as `8.9`. Raises `RequestError` for those it cannot build for."""
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in tensorrt.module.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise RequestError(
            f"{tensorrt} cannot build for compute capability {', '.join(unknown)}; "
            f"expected some of {', '.join(sorted(known, key=float))}"
        )
    return [known[target] for target in targets]


class TimingCache:
    """What TensorRT has measured: given from one engine of a build to the next, and kept in a file if asked.

    The graphs of bins differ in their weights alone, so that all but the first find everything measured.
    Raises `RequestError` for a file that cannot be read.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        try:
            self._content = file.read_bytes() if file is not None and file.exists() else b""
        except OSError as error:
            raise RequestError(f"could not read the timing cache {file}: {error.strerror}") from error

    def lend(self, tensorrt: TensorRt, config: Any) -> None:  # noqa: ANN401
        """Let a build use it. Raises `RequestError` when the file is another TensorRT's or GPU's."""
        cache = config.create_timing_cache(self._content)
        if cache is None or not config.set_timing_cache(cache, False):
            raise RequestError(
                f"{self._file} is no timing cache of {tensorrt} for this GPU "
                f"({tensorrt.messages.reason()}); delete it, or name another --timing-cache"
            )

    def take_back(self, config: Any) -> None:  # noqa: ANN401
        """Keep what a build has added. Raises `JobError` when the disk refuses."""
        self._content = bytes(memoryview(config.get_timing_cache().serialize()))
        if self._file is not None:
            with replacing(self._file) as temporary:
                temporary.write_bytes(self._content)

"""The flavours of engines: what each of them needs, serves, and can build. The one table of them.

Who chooses, opens or builds engines asks the row. To add a flavour: its name in the type, a row, and the
module that the row names; what compiles engines is in `s3diff_export.engines`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

DeviceKind = Literal["cpu", "cuda"]
BuilderFlavour = Literal["tensorrt", "tensorrt-rtx"]
"""Flavours that compile engines."""
BUILDER_FLAVOURS: tuple[BuilderFlavour, ...] = get_args(BuilderFlavour)
CompiledFlavour = Literal[BuilderFlavour, "tensorrt-lean"]
"""Flavours whose engines are compiled for a machine, and lie in the bundle."""
COMPILED_FLAVOURS: tuple[CompiledFlavour, ...] = get_args(CompiledFlavour)
Flavour = Literal[CompiledFlavour, "openvino", "onnx"]


@dataclass(frozen=True)
class FlavourTraits:
    """What follows from a flavour."""

    name: Flavour
    title: str
    """For people."""
    package: str
    """The Python package that it runs on."""
    extra: str
    """What of s3diff-export installs the package."""
    opened_by: str
    """The module whose `open_engine(bundle, flavour, device, cpu)` gives an `Engine`, and the `EngineSet`
    that it runs, if any; it raises `RequestError` where this machine or bundle does not serve."""
    devices: tuple[DeviceKind, ...]
    built_with: str = ""
    """Options of `s3diff-export engines` that build what it runs."""
    runs_older: bool = False
    """Whether it runs engines that an older version has built."""
    version_compatible: CompiledFlavour | None = None
    """What runs the version-compatible engines that it builds."""
    oldest: tuple[int, int] = (0, 0)
    """First two numbers of the oldest version that serves."""
    typed_since: int = 0
    """First number of the version from which on all networks are typed; older ones have a flag for it."""
    targets: tuple[str, ...] = ()
    """Compute capabilities that it builds for by default, without a GPU. None: it builds for the GPU here."""
    compiles_on_device: bool = False
    """Whether kernels are compiled on the GPU that runs them, for each new shape; no build tunes them."""
    usual_batch: int | None = None
    """The most images or tiles that it computes at once unless asked for more; None sets no limit."""
    chooses_precision: bool = False
    """Whether it takes `CpuOptions.cpu_precision`; else it computes in the types of the graphs."""
    reads_cuda_forms: bool = False
    """Whether on CUDA it runs the graphs in the form that has its own operators, where there is one."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Options of building that it cannot take, by field: why, and what to do instead."""

    @property
    def is_compiled(self) -> bool:
        """Whether it runs engines of the bundle, which a machine has compiled; else it runs the graphs."""
        return self.name in COMPILED_FLAVOURS


FLAVOURS: Mapping[str, FlavourTraits] = MappingProxyType(
    {
        traits.name: traits
        for traits in (
            FlavourTraits(
                "tensorrt",
                title="TensorRT",
                package="tensorrt",
                extra="tensorrt",
                opened_by="s3diff_runtime.engines.tensorrt.engine",
                devices=("cuda",),
                built_with="--engine tensorrt",
                version_compatible="tensorrt-lean",
                oldest=(10, 12),
                typed_since=11,
                lacks={
                    "compute_capabilities": "TensorRT builds for the GPU of this machine; leave out "
                    "--compute-capability, or widen the engines with --hardware-compatibility",
                },
            ),
            FlavourTraits(
                "tensorrt-rtx",
                title="TensorRT-RTX",
                package="tensorrt_rtx",
                extra="tensorrt-rtx",
                opened_by="s3diff_runtime.engines.tensorrt.engine",
                devices=("cuda",),
                built_with="--engine tensorrt-rtx",
                oldest=(1, 2),
                targets=("8.6", "8.9", "12.0"),  # RTX 30, 40 and 50 series; every version builds for them
                compiles_on_device=True,
                lacks={
                    "timing_cache": "TensorRT-RTX has no timing cache, it measures no tactics; leave out "
                    "--timing-cache",
                    "hardware_compatibility": "TensorRT-RTX ignores hardware compatibility, its engines "
                    "serve every GPU of their targets; name those with --compute-capability instead of "
                    "--hardware-compatibility",
                    "version_compatible": "TensorRT-RTX runs engines of its own version alone; leave out "
                    "--version-compatible",
                },
            ),
            FlavourTraits(
                "tensorrt-lean",
                title="TensorRT's lean runtime",
                package="tensorrt_lean",
                extra="tensorrt-lean",
                opened_by="s3diff_runtime.engines.tensorrt.engine",
                devices=("cuda",),
                built_with="--engine tensorrt --version-compatible",
                runs_older=True,
                oldest=(10, 13),
            ),
            FlavourTraits(
                "openvino",
                title="OpenVINO",
                package="openvino",
                extra="cpu",
                opened_by="s3diff_runtime.engines.openvino",
                devices=("cpu",),
                usual_batch=1,  # keeps all cores busy; four take 2.5 times the memory, and are 5 % faster
                chooses_precision=True,
            ),
            FlavourTraits(
                "onnx",
                title="ONNX Runtime",
                package="onnxruntime",
                extra="cpu",
                opened_by="s3diff_runtime.engines.onnx",
                devices=("cpu", "cuda"),
                reads_cuda_forms=True,
            ),
        )
    }
)
"""The fastest first."""
ENGINE_HELP = f"{', '.join(sorted(FLAVOURS))}, or auto: the fastest that fits bundle and machine."
"""Of options that name one."""

if set(FLAVOURS) != set(get_args(Flavour)):
    raise TypeError("FLAVOURS and the types of their names differ")

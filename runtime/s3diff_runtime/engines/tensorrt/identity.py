"""Which engines of a bundle a machine can load: what they were built for, against what is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from s3diff_runtime.bundle.engine_records import EngineIdentity
from s3diff_runtime.engines.tensorrt.cuda import Gpu

_AMPERE = (8, 0)


def mismatches(identity: EngineIdentity, gpu: Gpu, version: str) -> Iterator[str]:
    """Everything that keeps an engine from being loaded here: what was expected, and what was found.

    Args:
        identity: of the engine.
        gpu: that is to run it.
        version: of the TensorRT of its flavour that is installed.
    """
    if version != identity.version:
        yield f"expected {identity.flavour} {identity.version}, found {version}"
    if identity.hardware_compatibility == "ampere_plus":
        if _numbers(gpu.compute_capability) < _AMPERE:
            yield f"expected compute capability 8.0 or later, found {gpu.compute_capability} ({gpu.name})"
    elif gpu.compute_capability not in identity.targets:
        wanted = " or ".join(identity.targets)
        yield f"expected compute capability {wanted}, found {gpu.compute_capability} ({gpu.name})"
    elif identity.hardware_compatibility == "none" and identity.gpu not in (None, gpu.name):
        yield f"expected the GPU {identity.gpu}, found {gpu.name}"
    if identity.driver is not None and _numbers(gpu.driver) < _numbers(identity.driver):
        yield f"expected a driver for CUDA {identity.driver} or later, found one for {gpu.driver}"


def build_command(bundle: Path, flavour: str) -> str:
    """The command that builds engines for this machine."""
    return f"s3diff-export engines {bundle} --engine {flavour}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())

"""What may be asked of the engines of a bundle, and which flavour of TensorRT lacks what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from s3diff_runtime.bundle.engine_records import Flavour, Profile, Range
from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import SCALE

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

DEFAULT_TARGETS: Final = ("8.6", "8.9", "12.0")
"""Compute capabilities of the RTX 30, 40 and 50 series, which every TensorRT-RTX builds for."""
_USUAL_SIDE = 128  # the runtime's tiles
_LARGEST_SIDE = 256
_LEVELS = range(6)
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_CAPABILITY = re.compile(r"\d{1,2}\.\d")


@dataclass(frozen=True)
class SizeRange:
    """Height and width of low-resolution images, in pixels: least, tuned, largest. None takes the default.

    The defaults are one multiple of the bundle's padding, 128 (the tiles of the runtime) and 256; where one
    of them would lie on the wrong side of a size that was given, it is that size.
    """

    min: tuple[int, int] | None = None
    opt: tuple[int, int] | None = None
    max: tuple[int, int] | None = None

    def resolved(self, axis: int, multiple: int) -> tuple[int, int, int]:
        """Least, tuned and largest size of axis 0 (height) or 1 (width); unchecked."""
        least, tuned, most = (None if size is None else size[axis] for size in (self.min, self.opt, self.max))
        low = least or min(multiple, tuned or multiple, most or multiple)
        usual = -(-_USUAL_SIDE // multiple) * multiple
        middle = tuned or min(max(usual, low), most or max(usual, low))
        return low, middle, most or max(-(-_LARGEST_SIDE // multiple) * multiple, middle)


@dataclass(frozen=True)
class EngineOptions:
    """Which engines to build, and how.

    Raises:
        RequestError: naming everything that is wrong, or that the flavour lacks, at once.
    """

    flavour: Flavour
    sizes: SizeRange = SizeRange()
    batch: tuple[int, int, int] = (1, 1, 4)
    """Least, tuned and largest number of images in a call."""
    workspace_mib: int | None = None
    """Scratch memory on the device that tactics may use; None is all there is."""
    optimization_level: int = 3
    """0 builds fastest, 5 tries the most tactics; 3 is TensorRT's own default."""
    timing_cache: Path | None = None
    """File that keeps measured tactics between builds. TensorRT 10 and 11."""
    hardware_compatibility: HardwareCompatibility = "none"
    """Which other GPUs the engines run on, at some speed. TensorRT 10 and 11."""
    compute_capabilities: tuple[str, ...] = ()
    """Such as `8.9`: the GPUs to build for; none is `DEFAULT_TARGETS`. TensorRT-RTX."""

    def __post_init__(self) -> None:
        """Check every field."""
        problems = [*self._wrong(), *self._lacking()]
        if problems:
            raise RequestError("wrong engine options: " + "; ".join(problems))

    @property
    def targets(self) -> tuple[str, ...]:
        """The compute capabilities that TensorRT-RTX builds for, ascending, each once."""
        chosen = self.compute_capabilities or DEFAULT_TARGETS
        return tuple(sorted(set(chosen), key=lambda target: tuple(map(int, target.split(".")))))

    def profile(self, multiple: int) -> Profile:
        """What the engines serve.

        Args:
            multiple: of the bundle: what both sides are padded to a multiple of, in high-resolution pixels.

        Raises:
            RequestError: for sizes that are no multiples, or not in order; names all of them.
        """
        padding = multiple // SCALE
        sides = {name: self.sizes.resolved(axis, padding) for axis, name in enumerate(("height", "width"))}
        problems = []
        for name, sizes in sides.items():
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                least, tuned, most = sizes
                problems.append(f"{name} {least}, {tuned}, {most}: expected min <= opt <= max")
            for size in sorted({size for size in sizes if size % padding}):
                near = max(size // padding, 1) * padding
                problems.append(f"{name} {size} is no multiple of {padding}; take {near} or {near + padding}")
        if problems:
            raise RequestError(f"wrong sizes for this bundle: {'; '.join(problems)}")
        return Profile(batch=_range(self.batch), **{name: _range(sizes) for name, sizes in sides.items()})

    def _wrong(self) -> Iterator[str]:
        if self.flavour not in get_args(Flavour):
            yield f"engine {self.flavour!r}, expected {' or '.join(get_args(Flavour))}"
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            yield "batch {}, {}, {}: expected 1 <= min <= opt <= max".format(*self.batch)
        if self.workspace_mib is not None and self.workspace_mib < 1:
            yield f"--workspace-mib {self.workspace_mib}, expected 1 or more"
        if self.optimization_level not in _LEVELS:
            yield f"--optimization-level {self.optimization_level}, expected 0 to {_LEVELS[-1]}"
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            yield (
                f"--hardware-compatibility {self.hardware_compatibility!r}, "
                f"expected {', '.join(get_args(HardwareCompatibility))}"
            )
        for capability in self.compute_capabilities:
            if not _CAPABILITY.fullmatch(capability):
                yield f"--compute-capability {capability!r}, expected numbers such as 8.9"

    def _lacking(self) -> Iterator[str]:
        """What the flavour cannot do, with the reason."""
        if self.flavour == "tensorrt-rtx":
            if self.timing_cache is not None:
                yield "TensorRT-RTX has no timing cache, it measures no tactics; leave out --timing-cache"
            if self.hardware_compatibility != "none":
                yield (
                    "TensorRT-RTX ignores hardware compatibility, its engines serve every GPU of their "
                    "targets; name those with --compute-capability instead of --hardware-compatibility"
                )
        elif self.compute_capabilities:
            yield (
                "TensorRT builds for the GPU of this machine; leave out --compute-capability, or widen the "
                "engines with --hardware-compatibility"
            )


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `128` or `96x128`. Raises `RequestError` for anything else."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise RequestError(f"size {text!r}, expected pixels such as 128, or HEIGHTxWIDTH such as 96x128")
    return int(match[1]), int(match[2] or match[1])


def _range(sizes: tuple[int, int, int]) -> Range:
    return Range(min=sizes[0], opt=sizes[1], max=sizes[2])

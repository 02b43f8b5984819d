"""What may be asked of the engines of a bundle, and the shapes of tensors that follow from it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from s3diff_runtime.bundle.engine_records import HardwareCompatibility, Profile, Range, Shapes
from s3diff_runtime.bundle.manifest import Manifest, Stage
from s3diff_runtime.engines.flavours import BUILDER_FLAVOURS, FLAVOURS, BuilderFlavour, FlavourTraits
from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.options import Options, group, option
from s3diff_runtime.upscale_options import USUAL_TILE, UpscaleOptions
from s3diff_runtime.vocabulary import SCALE

_LEAST_SIDE = 4  # TensorRT-RTX cannot plan memory for an encoder of 4 pixels padded to 8
_LARGEST_SIDE = 256
_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")
_PROMPTS = (1, 2, 2)  # least, tuned and largest number: with guidance, positive and negative
_CAPABILITY = re.compile(r"\d{1,2}\.\d")
Size = tuple[int, int]
"""Height and width, in low-resolution pixels."""


def parse_size(text: str) -> Size:
    """Height and width of `128` or `96x128`. Raises `RequestError` for anything else."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise RequestError(f"size {text!r}, expected pixels such as 128, or HEIGHTxWIDTH such as 96x128")
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True)
class SizeRange(Options):
    """Height and width of low-resolution images, in pixels: least, tuned, largest. None takes the default.

    The defaults are one multiple of the bundle's padding (of 4 or more), 128 (the tiles of the runtime) and
    256; where one of them would lie on the wrong side of a size that was given, it is that size.
    """

    min: Size | None = option(
        None,
        "Smallest image. Low-resolution pixels: 128, or HEIGHTxWIDTH such as 96x128.",
        flags=("--min-size",),
        shown="the bundle's padding, 4 or more",
        parse=parse_size,
    )
    opt: Size | None = option(
        None,
        "Size that the engines are tuned for.",
        flags=("--opt-size",),
        shown=str(USUAL_TILE),
        parse=parse_size,
    )
    max: Size | None = option(
        None, "Largest image or tile.", flags=("--max-size",), shown=str(_LARGEST_SIDE), parse=parse_size
    )

    def resolved(self, axis: int, multiple: int) -> tuple[int, int, int]:
        """Least, tuned and largest size of axis 0 (height) or 1 (width); unchecked."""
        least, tuned, most = (None if size is None else size[axis] for size in (self.min, self.opt, self.max))
        smallest = -(-_LEAST_SIDE // multiple) * multiple
        low = least or min(smallest, tuned or smallest, most or smallest)
        usual = -(-USUAL_TILE // multiple) * multiple
        middle = tuned or min(max(usual, low), most or max(usual, low))
        return low, middle, most or max(-(-_LARGEST_SIDE // multiple) * multiple, middle)


@dataclass(frozen=True)
class BatchRange(Options):
    """Least, tuned and largest number of images in a call."""

    min: int = option(1, "Images in a call.", flags=("--min-batch",))
    opt: int = option(1, "As tuned for.", flags=("--opt-batch",))
    max: int = option(4, "At most.", flags=("--max-batch",))

    def problems(self) -> Iterator[str]:
        """Numbers that are not in order."""
        if not 1 <= self.min <= self.opt <= self.max:
            yield f"batch {self.min}, {self.opt}, {self.max}: expected 1 <= min <= opt <= max"


@dataclass(frozen=True)
class EngineOptions(Options):
    """Which engines to build, and how; none without a flavour."""

    flavour: BuilderFlavour | None = option(
        None,
        "Builds engines: tensorrt on a GPU and for it, tensorrt-rtx without.",
        flags=("--engine",),
    )
    sizes: SizeRange = group(SizeRange)
    batch: BatchRange = group(BatchRange)
    workspace_mib: int | None = option(
        None, "Scratch memory on the device that tactics may use.", least=1, shown="all"
    )
    optimization_level: int = option(3, "0 builds fastest, 5 runs fastest.", least=0, most=5)
    timing_cache: Path | None = option(None, "File that speeds up later builds. tensorrt.")
    hardware_compatibility: HardwareCompatibility = option(
        "none", "Other GPUs that the engines run on too, slower. tensorrt."
    )
    version_compatible: bool = option(
        False, "Engines for the lean runtime of this TensorRT and later ones, maybe slower. tensorrt."
    )
    compute_capabilities: tuple[str, ...] = option(
        (),
        "GPUs to build for. tensorrt-rtx.",
        flags=("--compute-capability",),
        shown="; ".join(",".join(traits.targets) for traits in FLAVOURS.values() if traits.targets),
    )

    def problems(self) -> Iterator[str]:
        """Options without an engine, or that the flavour lacks, and what is no compute capability."""
        if self.flavour is None:
            idle = [*self.sizes.flags_of(), *self.batch.flags_of(), *self.flags_of()]
            if idle:
                flavours = " or ".join(BUILDER_FLAVOURS)
                yield f"{', '.join(idle)} without an engine; add --engine {flavours}"
            return
        for capability in self.compute_capabilities:
            if not _CAPABILITY.fullmatch(capability):
                yield f"--compute-capability {capability!r}, expected numbers such as 8.9"
        for name, reason in self.traits.lacks.items():
            if getattr(self, name) != getattr(EngineOptions, name):
                yield reason

    @property
    def traits(self) -> FlavourTraits:
        """Of the flavour that was chosen."""
        return FLAVOURS[str(self.flavour)]

    @property
    def targets(self) -> tuple[str, ...]:
        """The compute capabilities to build for, ascending, each once; none where a GPU decides."""
        chosen = self.compute_capabilities or self.traits.targets
        return tuple(sorted(set(chosen), key=lambda target: tuple(map(int, target.split(".")))))

    @property
    def exact_batches(self) -> tuple[int, ...]:
        """Numbers of images of the tuned size that get a profile of their own: one, and the runtime's batch.

        TensorRT tunes its kernels for the middle of a profile alone, and knows most of an exact one.
        """
        if self.traits.compiles_on_device:
            return ()
        usual = (1, UpscaleOptions.batch)
        return tuple(sorted({min(max(count, self.batch.min), self.batch.max) for count in usual}))

    def profile(self, multiple: int) -> Profile:
        """What the engines serve of a bundle that pads both sides to a multiple of high-resolution pixels.

        Raises:
            RequestError: for sizes that are no multiples, or not in order; names all of them.
        """
        padding = multiple // SCALE
        sides = {name: self.sizes.resolved(axis, padding) for axis, name in enumerate(("height", "width"))}
        refuse(_side_problems(sides, padding), "wrong sizes for this bundle")
        ranges = {"batch": (self.batch.min, self.batch.opt, self.batch.max), **sides}
        made = {name: Range(min=low, opt=opt, max=high) for name, (low, opt, high) in ranges.items()}
        return Profile(**made)


def _side_problems(sides: dict[str, tuple[int, int, int]], padding: int) -> Iterator[str]:
    for name, sizes in sides.items():
        if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            yield f"{name} {', '.join(map(str, sizes))}: expected min <= opt <= max"
        for size in sorted({size for size in sizes if size % padding}):
            near = max(size // padding, 1) * padding
            yield f"{name} {size} is no multiple of {padding}; take {near} or {near + padding}"


def stage_shapes(manifest: Manifest, stage: Stage, profile: Profile, scale: int = SCALE) -> dict[str, Shapes]:
    """The shapes of all inputs of a stage, by name; a fixed axis has one size in all three.

    An image may be smaller than the sides of the profile by less than one multiple, because the graphs pad it
    up. Latent and decoded sides are those of the padded image. At another scale, images are those whose
    results have the same sizes.

    Raises:
        KeyError: for an axis that no stage of this version has.
    """
    axes: dict[int | str, tuple[int, ...]] = {"batch": profile.batch.sizes(), "prompts": _PROMPTS}
    for name, side in (("height", profile.height), ("width", profile.width)):
        first = side.min * SCALE - manifest.multiple + SCALE
        axes[name] = -(-first // scale), side.opt * SCALE // scale, side.max * SCALE // scale
        axes[f"upscaled_{name}"] = first, side.opt * SCALE, side.max * SCALE
        axes[f"latent_{name}"] = tuple(size * SCALE // manifest.vae_factor for size in side.sizes())
        axes[f"decoded_{name}"] = tuple(size * SCALE for size in side.sizes())
    shapes: dict[str, Shapes] = {}
    for spec in stage.inputs:
        sizes = [(axis,) * 3 if isinstance(axis, int) else axes[axis] for axis in spec.shape]
        least, tuned, largest = (tuple(size[which] for size in sizes) for which in range(3))
        shapes[spec.name] = least, tuned, largest
    return shapes


def exact_shapes(
    manifest: Manifest, stage: Stage, profile: Profile, batches: Iterable[int], scale: int = SCALE
) -> tuple[dict[str, tuple[int, ...]], ...]:
    """The shapes of all inputs of a stage at the tuned size, for each of `batches`; equal ones once."""
    found: list[dict[str, tuple[int, ...]]] = []
    for count in batches:
        batch = Range(min=count, opt=count, max=count)
        shapes = stage_shapes(manifest, stage, profile.model_copy(update={"batch": batch}), scale)
        tuned = {name: sizes[1] for name, sizes in shapes.items()}
        if tuned not in found:
            found.append(tuned)
    return tuple(found)

"""What a bundle says of its TensorRT engines: what they were built for, with what, and from what."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from s3diff_runtime.bundle.records import Part, RelativePath, Sha256, TensorSpec, UtcTime
from s3diff_runtime.engines.flavours import CompiledFlavour
from s3diff_runtime.vocabulary import Precision

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
"""Which GPUs an engine runs on besides the one that it was tuned on, at some speed."""


class Range(Part):
    """Sizes that an axis may take: least, the one that the engine is tuned for, and most."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self.min}, {self.opt}, {self.max}: expected min <= opt <= max")
        return self

    def sizes(self) -> tuple[int, int, int]:
        """All three, ascending."""
        return self.min, self.opt, self.max


class Profile(Part):
    """Batch and low-resolution image sides, in pixels, that engines serve.

    Sides are multiples of the bundle's padding; images between two multiples, and those below the least one,
    are padded up inside the graphs.
    """

    batch: Range
    height: Range
    width: Range


class EngineIdentity(Part):
    """What decides whether an engine may be loaded, and whether an equal one exists already."""

    flavour: CompiledFlavour
    """What runs it."""
    version: str
    """Of the TensorRT that built it; engines load in no other one, version-compatible ones in later ones."""
    targets: tuple[str, ...] = Field(min_length=1)
    """Compute capabilities, such as `8.9`, that it was built for."""
    hardware_compatibility: HardwareCompatibility = "none"
    """Whether it also runs on other GPUs than `gpu`; TensorRT 10 and 11."""
    gpu: str | None = None
    """Name of the GPU that it was tuned on; None where it was built without one (TensorRT-RTX)."""
    driver: str | None = None
    """Version of the driver at the build; None without a GPU."""
    precision: Precision
    profile: Profile
    exact_batches: tuple[int, ...] = ()
    """Numbers of images of the tuned size for which it has a profile, and so kernels, of their own."""
    options: dict[str, int | str | None]
    """The builder's other options that change the result, such as the optimisation level."""


class EngineSet(Part):
    """The engines of one identity. They lie in `engines/<name>/`, each `.engine` with a `.json` beside it.

    `graphs` has, for each stage, the engine's path by bin or `shared`, as the stage's own `graphs` does.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._+-]*$")
    identity: EngineIdentity
    graphs: dict[str, dict[str, RelativePath]]

    def paths(self) -> Iterator[str]:
        """The engines' paths."""
        for graphs in self.graphs.values():
            yield from graphs.values()


def sidecar_path(engine: str) -> str:
    """Where the sidecar of an engine lies: `.json` in the place of `.engine`."""
    return f"{engine.removesuffix('.engine')}.json"


Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Least, tuned and largest shape of an input."""


class EngineSidecar(Part):
    """The `.json` beside an engine."""

    identity: EngineIdentity
    stage: str
    graph: str
    """Name of the bin, or `shared`."""
    onnx: dict[RelativePath, Sha256]
    """The files that it was built from."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: dict[str, Shapes]
    """Of every input, in the profile that serves all of them: the last."""
    exact: tuple[dict[str, tuple[int, ...]], ...] = ()
    """Shapes of every input that have a profile of their own, in the order of the profiles."""
    sha256: Sha256
    """Of the engine."""
    size: int = Field(ge=1)
    """Of the engine, in bytes."""
    built: UtcTime
    seconds: float = Field(ge=0)
    """Of the build."""

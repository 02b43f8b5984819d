"""Whatever upscales, behind one call: bundles here, PyTorch in `pytorch_method`, other methods in `pairs`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from s3diff_runtime.errors import JobError, RequestError
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Result, Upscaler
from s3diff_runtime.vocabulary import Pixels

BICUBIC = "bicubic"
EXACT = "PyTorch fp32"
RELEASED = "PyTorch as released"
TUNED = "PyTorch tuned"
_BUNDLE_SUFFIX = ".bundle"


class Input(NamedTuple):
    """A low-resolution picture."""

    pixels: Pixels
    """uint8 RGB `[H, W, 3]`."""
    name: str = ""
    """Of its file, without suffix; a folder of results knows it by that."""


@dataclass(frozen=True)
class Upscaled:
    """A result and how it came about."""

    pixels: Pixels
    """uint8 RGB `[4H, 4W, 3]`."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage, an image's share of its batch; `host` is what no stage has. Empty where unknown."""
    applied: Mapping[str, float] = field(default_factory=dict)
    """The scores `noise` and `blur` that were applied, in [0, 1]. Empty where unknown."""
    bin: str | None = None
    """Whose weights were used, of a merged bundle."""

    @property
    def total_seconds(self) -> float | None:
        """Of all stages; None where unknown."""
        return sum(self.seconds.values()) if self.seconds else None


class Method(Protocol):
    """A way to upscale, ready to run."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        ...

    def __call__(
        self, inputs: Sequence[Input], noise: float | None = None, blur: float | None = None
    ) -> list[Upscaled]:
        """Upscale one or more pictures, as one batch where they are of one size.

        `noise` and `blur`, in [0, 1], take the place of the estimated scores, where a method has any.
        """
        ...


@dataclass(frozen=True)
class BundleMethod:
    """An opened bundle on one engine."""

    name: str
    folder: Path
    upscaler: Upscaler

    def __call__(
        self, inputs: Sequence[Input], noise: float | None = None, blur: float | None = None
    ) -> list[Upscaled]:
        """See `Method`; large pictures are cut into tiles as the bundle was opened to."""
        results = self.upscaler.upscale_pixels([each.pixels for each in inputs], noise=noise, blur=blur)
        return [
            Upscaled(result.pixels, result.seconds, result.applied, result.bin.name if result.bin else None)
            for result in results
        ]


class OpenedBundles(NamedTuple):
    """The bundles that could be opened, and a note on each engine of one that could not."""

    methods: list[BundleMethod]
    notes: list[str]


def bundle_names(bundles: Sequence[Path]) -> list[str]:
    """Short names that tell bundles apart: of their folders, with their paths where these are alike."""
    names = [path.resolve().name.removesuffix(_BUNDLE_SUFFIX) for path in bundles]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(bundles, names, strict=True)]


@contextmanager
def open_bundles(
    bundles: Sequence[Path], engines: Sequence[str], device: str, options: UpscaleOptions | None = None
) -> Iterator[OpenedBundles]:
    """Open every bundle on every engine, as `Upscaler.open` does, and close them in the end.

    An engine that a bundle or this machine lacks is left out with a note; where nothing could be opened, the
    last such `RequestError` is raised.
    """
    found, last = OpenedBundles([], []), None
    with ExitStack() as opened:
        for name, folder in zip(bundle_names(bundles), bundles, strict=True):
            for engine in dict.fromkeys(engines):
                try:
                    upscaler = opened.enter_context(Upscaler.open(folder, engine, device, options))
                except RequestError as error:
                    found.notes.append(f"{name} was not measured on {engine}: {error}")
                    last = error
                    continue
                shown = f"{name}, {upscaler.engine}" if len(engines) > 1 else name
                found.methods.append(BundleMethod(shown, folder, upscaler))
        if not found.methods and last is not None:
            raise last
        yield found


def require_pictures(name: str, results: Sequence[Upscaled | Result]) -> None:
    """Raise `JobError` for a result that is no picture: times of a broken network say nothing."""
    for pixels in (result.pixels for result in results):
        if pixels.min() == pixels.max():
            raise JobError(
                f"{name} gave an image of one colour ({pixels.flat[0]}); its times were not taken: see "
                "s3diff-export verify"
            )

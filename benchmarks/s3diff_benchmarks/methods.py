"""The ways to upscale a batch that are timed against each other, a bundle and PyTorch, behind one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from s3diff_benchmarks.pictures.quality import bundle_names
from s3diff_runtime.errors import JobError, RequestError
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler
from s3diff_runtime.vocabulary import Pixels


class Upscaled(NamedTuple):
    """Images, uint8 RGB `[4H, 4W, 3]`, and the seconds of each stage that made them."""

    images: list[Pixels]
    seconds: dict[str, float]


class Method(Protocol):
    """A way to upscale, ready to run."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        ...

    def __call__(self, images: Sequence[Pixels]) -> Upscaled:
        """Upscale uint8 RGB `[H, W, 3]`, all of one size, as one batch."""
        ...


@dataclass(frozen=True)
class BundleMethod:
    """An opened bundle on one engine."""

    name: str
    folder: Path
    upscaler: Upscaler

    def __call__(self, images: Sequence[Pixels]) -> Upscaled:
        """See `Method`."""
        results = self.upscaler.upscale_pixels(images)
        stages = dict.fromkeys(stage for result in results for stage in result.seconds)
        seconds = {stage: sum(result.seconds.get(stage, 0.0) for result in results) for stage in stages}
        return Upscaled([result.pixels for result in results], seconds)


class Opening(NamedTuple):
    """The methods that could be opened, and a note on each that could not."""

    methods: list[BundleMethod]
    notes: list[str]


def open_bundles(
    bundles: Sequence[Path],
    engines: Sequence[str],
    device: str,
    options: UpscaleOptions,
    opened: ExitStack,
) -> Opening:
    """Open every bundle on every engine.

    Args:
        bundles: whose folders give the names.
        engines: see `Upscaler.open`. Where there are several, one that a bundle or this machine lacks is left
            out with a note.
        device: of all.
        options: of all.
        opened: closes them.

    Raises:
        RequestError, BundleError, JobError: see `Upscaler.open`; of a missing engine, only
            when nothing could be opened.
    """
    found, notes, last = Opening([], []), [], None
    for name, folder in zip(bundle_names(bundles), bundles, strict=True):
        for engine in engines:
            try:
                upscaler = opened.enter_context(Upscaler.open(folder, engine, device, options))
            except RequestError as error:
                notes.append(f"{name} was not measured on {engine}: {error}")
                last = error
                continue
            shown = f"{name}, {upscaler.engine}" if len(engines) > 1 else name
            found.methods.append(BundleMethod(shown, folder, upscaler))
    if not found.methods and last is not None:
        raise last
    return Opening(found.methods, notes)


def require_pictures(name: str, images: Iterable[Pixels]) -> None:
    """Raise `JobError` for a result that is no picture: times of a broken network say nothing."""
    for image in images:
        if image.min() == image.max():
            raise JobError(
                f"{name} gave an image of one colour ({image.flat[0]}); its times were not taken: see "
                "s3diff-export verify"
            )

"""How large results are: a scale of their inputs, or what a long side or a box asks for."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from s3diff_runtime.batch.jobs import Job
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, option
from s3diff_runtime.pictures.formats import holds_transparency, require_fit
from s3diff_runtime.pictures.photograph import photograph_size, result_needs
from s3diff_runtime.pictures.reading import MAX_SIDE, opened
from s3diff_runtime.remote import Place, RemotePath

MOST_FACTOR = 8
"""Sides of a result over those of its input: twice what the network can do. Beyond, nothing is restored."""
_BOX = re.compile(r"([1-9]\d{0,4})[xX×]([1-9]\d{0,4})")


class Sized(NamedTuple):
    """What becomes of a picture: the scale that the network works at, and the result's size in pixels."""

    scale: int
    width: int
    height: int


@dataclass(frozen=True)
class ResultSize(Options):
    """A size that is no multiple of the input's: the least scale that reaches it, then Lanczos."""

    long_side: int | None = option(
        None,
        "Pixels of the result's longer side, by the least scale that reaches it and Lanczos.",
        least=1,
        most=MAX_SIDE,
    )
    size: str | None = option(
        None, "WIDTHxHEIGHT that the result fills as far as its proportions allow, in the same way."
    )

    def problems(self) -> Iterator[str]:
        """Two sizes, and what is none."""
        if self.size is not None and _BOX.fullmatch(self.size) is None:
            yield f"size is {self.size!r}, expected WIDTHxHEIGHT in pixels, as 1920x1080"
        if self.size is not None and self.long_side is not None:
            yield "--long-side and --size: a result has one size; pass one of them"


@dataclass(frozen=True)
class Sizing:
    """How the size of a result follows from its input's: by `scale`, where no size is wanted."""

    wanted: ResultSize
    scale: int
    scales: Sequence[int]
    """To choose from."""

    @classmethod
    def asked(cls, wanted: ResultSize, scale: int | None, manifest: Manifest) -> Self:
        """What a bundle makes of a request; without a scale it is the bundle's."""
        return cls(wanted, scale or manifest.scale, manifest.scales)

    def of(self, width: int, height: int) -> Sized:
        """What becomes of a picture of `width` × `height` pixels.

        Raises:
            RequestError: for a result of more than `MOST_FACTOR` times the sides.
        """
        box = _BOX.fullmatch(self.wanted.size or "")
        if box is not None:
            factor = min(int(box[1]) / width, int(box[2]) / height)
        elif self.wanted.long_side is not None:
            factor = self.wanted.long_side / max(width, height)
        else:
            return Sized(self.scale, self.scale * width, self.scale * height)
        if factor > MOST_FACTOR:
            raise RequestError(
                f"a picture of {width}x{height} pixels would be enlarged {factor:.1f} times, expected at "
                f"most {MOST_FACTOR}; ask for a smaller size"
            )
        least = min((each for each in self.scales if each >= factor), default=max(self.scales))
        return Sized(least, max(1, round(factor * width)), max(1, round(factor * height)))


def size_of_result(job: Job, sizing: Sizing, max_pixels: int) -> tuple[tuple[int, int], Sized]:
    """`(width, height)` of a job's input, judging by its header, and what becomes of it.

    Raises:
        RequestError: when the input cannot be read, or the format of the result cannot hold it.
    """
    only_opaque = not holds_transparency(job.target)
    (width, height), transparent = result_needs(job.source, max_pixels, only_opaque)
    sized = sizing.of(width, height)
    require_fit(job.target, sized.width, sized.height, transparent)
    return (width, height), sized


def is_whole(job: Job, sizing: Sizing, max_pixels: int) -> bool:
    """Whether every output of a job exists and decodes to its end, and the result has the size it must have.

    In a store a file that is there and not empty is whole, as it came at once: its content is not read.

    Raises:
        RequestError: when the input cannot be read.
    """
    if not all(path.is_file() for path in job.outputs):
        return False
    if isinstance(job.target, RemotePath):
        return True
    sized = sizing.of(*photograph_size(job.source, max_pixels))
    sizes = [_decoded_size(path) for path in job.outputs]
    return sizes[0] == (sized.width, sized.height) and None not in sizes


def _decoded_size(path: Place) -> tuple[int, int] | None:
    try:
        with opened(path, max_pixels=None) as picture:
            _, _, notes = picture.decode()
            return None if notes else picture.size
    except RequestError:
        return None

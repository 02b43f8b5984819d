"""Finds what belongs together in folders of images: inputs, truths, and what other methods made of them."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from s3diff_benchmarks.methods import Input, Upscaled
from s3diff_runtime.errors import RequestError, first_few
from s3diff_runtime.pictures.formats import SUFFIXES
from s3diff_runtime.pictures.photograph import open_photograph, photograph_size
from s3diff_runtime.vocabulary import SCALE, Pixels

LEAST_SIDE = 8
"""Of inputs with a truth: LPIPS and SSIM look at larger surroundings than smaller results have."""
SECONDS_NAME = "seconds.json"
_LARGEST_SECONDS = 2**20
"""Bytes; a thousand images take less than 64 KiB."""

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$"
Line = Annotated[str, Field(max_length=200, pattern=_PRINTABLE)]
"""Text that is shown on a terminal: no control characters."""


@dataclass(frozen=True)
class Case:
    """One image to restore, and its truth, four times as large, where there is one: files, or pixels."""

    name: str
    lr: Path | Pixels
    hr: Path | Pixels | None = None


class ProgramRun(BaseModel):
    """How a peer's program was run."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    command: Annotated[str, Field(pattern=_PRINTABLE)]
    """With its placeholders."""
    images: PositiveInt
    seconds: NonNegativeFloat
    """From the program's start to its end, for all images."""


class PeerTimes(BaseModel):
    """What is known of a peer's speed: `seconds.json` beside its images."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    machine: Line
    software: Line = ""
    seconds: Mapping[str, NonNegativeFloat]
    """By the stem of the image."""
    run: ProgramRun | None = None
    """Where `bench quality --run` ran the peer's program."""


@dataclass(frozen=True)
class Peer:
    """Another method, known by what it made of the images: a `Method`."""

    name: str
    outputs: Mapping[str, Path]
    """By the name of the case."""
    times: PeerTimes | None

    def __call__(
        self, inputs: Sequence[Input], noise: float | None = None, blur: float | None = None
    ) -> list[Upscaled]:
        """See `Method`; it answers with its files, by the names of the inputs, and has no scores."""
        seconds = self.times.seconds if self.times else {}
        return [
            Upscaled(
                open_photograph(self.outputs[each.name]).pixels,
                {"call": seconds[each.name]} if each.name in seconds else {},
            )
            for each in inputs
        ]


def images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder by stem, in the order of their names.

    Raises:
        RequestError: for a missing folder, one without images, and two images of one stem.
    """
    _require_folder(folder)
    found: dict[str, Path] = {}
    for path in sorted(filter(_is_image, folder.iterdir())):
        if path.stem in found:
            raise RequestError(f"{folder} has two images named {path.stem}; expected one: {path.name}")
        found[path.stem] = path
    if not found:
        raise RequestError(f"{folder} holds no images; expected {', '.join(sorted(SUFFIXES))}")
    return found


def images_below(folder: Path) -> Iterator[Path]:
    """All images of a folder and of those in it, in the order of their paths.

    Links to folders are left alone: they may lead back to the inputs.
    """
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from filter(_is_image, (Path(parent) / name for name in sorted(files)))


def find_cases(
    lr: Path, hr: Path | None, limit: int | None = None
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Match the images of two folders by the stems of their names.

    Gives the cases by name, only the first `limit` of them, and a note on every kind of image that was left
    out; without a folder of truths, all low-resolution images.

    Raises:
        RequestError: for a missing folder, two images of one stem, no pairs, or truths that are not four
            times as large as their inputs or too small to score; reads only headers.
    """
    inputs = images_of(lr)
    if hr is None:
        return tuple(Case(name, path) for name, path in inputs.items())[:limit], ()
    truths = images_of(hr)
    cases = [Case(name, path, truths[name]) for name, path in inputs.items() if name in truths][:limit]
    if not cases:
        raise RequestError(
            f"{lr} and {hr} have no pairs: expected images with the same names in both, such as "
            f"{next(iter(inputs))} in {hr}"
        )
    _require_scale("HR", cases, truths)
    sizes = [(case.name, *photograph_size(inputs[case.name])) for case in cases]
    small = [f"{name} {width}×{height}" for name, width, height in sizes if min(width, height) < LEAST_SIDE]
    if small:
        raise RequestError(
            f"LR must have at least {LEAST_SIDE} pixels a side to be scored; not so: {first_few(small)}"
        )
    notes = [
        f"{len(alone)} images of {folder} have no partner: {first_few(sorted(alone))}"
        for alone, folder in ((inputs.keys() - truths.keys(), lr), (truths.keys() - inputs.keys(), hr))
        if alone
    ]
    return tuple(cases), tuple(notes)


def find_results(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """What a method made of the images of those names, as far as it did; by name.

    Programs like to write into folders of their own and to put words behind names: `sample00/a.png`,
    `a_out.png`. So a result is an image in the folder, or anywhere below, that has the name, or begins with
    it and goes on with what is no letter or digit; the longest such name is the one that is meant. The name
    alone goes before one with words behind, and a folder before those in it.

    Raises:
        RequestError: for a missing folder, and two results that are as good as each other.
    """
    _require_folder(folder)
    ranked: dict[str, list[tuple[tuple[bool, int], Path]]] = {}
    for path in images_below(folder):
        name = _name_meant(path.stem, names)
        if name is not None:
            ranked.setdefault(name, []).append(((path.stem != name, len(path.parts)), path))
    for name, results in ranked.items():
        results.sort()
        if len(results) > 1 and results[0][0] == results[1][0]:
            first, second = (path.relative_to(folder) for _, path in results[:2])
            raise RequestError(f"{folder} has two images for {name}; expected one: {first}, {second}")
    return {name: results[0][1] for name, results in ranked.items()}


def find_peer(name: str, folder: Path, cases: Sequence[Case]) -> Peer:
    """The outputs of another method for all cases, as `find_results` finds them.

    Raises:
        RequestError: for a missing folder, an image without an output, with two or with one of another size,
            and a `seconds.json` that does not hold what `PeerTimes` says.
    """
    found = find_results(folder, {case.name for case in cases})
    missing = [case.name for case in cases if case.name not in found]
    if missing:
        raise RequestError(
            f"{folder} ({name}) has no output for {len(missing)} of {len(cases)} images: {first_few(missing)}"
        )
    _require_scale(f"what {name} made", cases, found)
    return Peer(name, found, read_times(folder / SECONDS_NAME))


def read_times(path: Path) -> PeerTimes | None:
    """The times in a file; None where there is no file. Raises `RequestError` for another content."""
    if not path.exists():
        return None
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_SECONDS:
            raise OSError(0, f"no file of at most {_LARGEST_SECONDS} bytes")
        return PeerTimes.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} fields are wrong"
        raise RequestError(
            f'{path} cannot be used ({reason}); expected {{"machine": "…", "seconds": {{"image": 1.5}}}}'
        ) from error


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder; expected a folder of images")


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES and path.is_file()


def _name_meant(stem: str, names: Collection[str]) -> str | None:
    """The longest of the names that a stem begins with and ends, or goes on without a letter or digit."""
    ends = (end for end in range(len(stem), 0, -1) if not stem[end : end + 1].isalnum())
    return next((stem[:end] for end in ends if stem[:end] in names), None)


def _size(picture: Path | Pixels) -> tuple[int, int]:
    """Width and height; of a file from its header."""
    return photograph_size(picture) if isinstance(picture, Path) else (picture.shape[1], picture.shape[0])


def _require_scale(what: str, cases: Sequence[Case], large: Mapping[str, Path]) -> None:
    wrong = []
    for case in cases:
        (width, height), found = _size(case.lr), _size(large[case.name])
        if found != (SCALE * width, SCALE * height):
            wrong.append(f"{case.name} {width}×{height} and {found[0]}×{found[1]}")
    if wrong:
        raise RequestError(f"{what} must be {SCALE} times as large as LR; not so: {first_few(wrong, '; ')}")

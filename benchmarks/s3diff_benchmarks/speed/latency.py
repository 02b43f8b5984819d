"""Times calls, file to file and stage by stage, of all methods in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from s3diff_benchmarks.methods import Method, require_pictures
from s3diff_benchmarks.pictures.drawn import middle
from s3diff_benchmarks.speed.meters import GpuMeter
from s3diff_benchmarks.statistics import Summary, sample_interleaved
from s3diff_runtime.clock import Clock
from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import Counted
from s3diff_runtime.vocabulary import Pixels

CALL, END_TO_END = "call", "end to end"
"""From pixels to pixels, and from file to file."""
DECODE, ENCODE = "decode", "encode"
TOLERANCE = 0.02


@dataclass(frozen=True)
class Case:
    """What is upscaled in one call: so many equal images."""

    side: int
    """Of the square low-resolution image."""
    batch: int

    @property
    def label(self) -> str:
        """On the axes of plots."""
        return f"{self.side} × {self.batch}" if self.batch > 1 else str(self.side)


@dataclass(frozen=True)
class Sampling:
    """How long is measured.

    Raises:
        RequestError: naming everything that is out of range.
    """

    seconds: float
    """For all cases together; each gets an equal share."""
    warm_up: int = 2
    """Runs of every method before anything counts."""
    least: int = 3
    """Rounds in any case."""

    def __post_init__(self) -> None:
        """Check every field."""
        if not (self.seconds > 0 and self.warm_up >= 0 and self.least >= 1):
            raise RequestError(
                f"sampling for {self.seconds} s after {self.warm_up} runs, at least {self.least} rounds; "
                "expected more than 0 s, 0 or more runs, 1 or more rounds"
            )


@dataclass
class Timings:
    """All that was measured of one method in one case; one entry a round, in seconds for the whole batch."""

    method: str
    case: Case
    stages: dict[str, list[float]] = field(default_factory=dict)
    """`decode`, those of the method, `encode`."""
    joules: list[float] = field(default_factory=list)
    """Energy of the calls; empty where it is not counted."""
    image: Pixels | None = field(default=None, repr=False)
    """The first that it made in this case, uint8 RGB."""

    @property
    def calls(self) -> list[float]:
        """From pixels to pixels."""
        return self._sums({DECODE, ENCODE})

    @property
    def whole(self) -> list[float]:
        """From files to files."""
        return self._sums(set())

    def _sums(self, without: set[str]) -> list[float]:
        taken = [seconds for stage, seconds in self.stages.items() if stage not in without]
        return [sum(each) for each in zip(*taken, strict=True)]


def picture_of(image: Pixels, side: int) -> Pixels:
    """A square of that side from the middle of an image, mirrored at its borders where it is too small."""
    cut = middle(image, side)
    missing = [(0, side - length) for length in cut.shape[:2]]
    return np.pad(cut, [*missing, (0, 0)], mode="symmetric")


def measure(
    methods: Sequence[Method],
    cases: Sequence[Case],
    image: Pixels,
    sampling: Sampling,
    folder: Path,
    meter: GpuMeter | None = None,
    progress: Counted = lambda done, what: None,
) -> list[Timings]:
    """Time every method in every case, in rounds with an order drawn anew, until the medians are settled.

    Args:
        methods: whose names differ.
        cases: one after the other.
        image: uint8 RGB `[H, W, 3]`, from whose middle inputs are cut.
        sampling: how long.
        folder: for files that are read and written; of the caller to remove.
        meter: counts the energy of the calls.
        progress: told the share that is done, from 0 to 1, and what runs.

    Returns:
        In the order of the cases, and within each of the methods.

    Raises:
        RequestError, JobError: when a method refuses or fails, or its result is no picture.
    """
    found = []
    for number, case in enumerate(cases):
        source = folder / f"input-{case.side}.png"
        save(Image.fromarray(picture_of(image, case.side)), source)
        share = sampling.seconds / len(cases)

        def tell(
            done: float, what: str, number: int = number, case: Case = case, share: float = share
        ) -> None:
            progress((number + done / share) / len(cases), f"{what}, {case.label}")

        timings = {method.name: Timings(method.name, case) for method in methods}
        samples = sample_interleaved(
            {method.name: _runner(method, timings[method.name], source, folder, meter) for method in methods},
            warm_up=sampling.warm_up,
            least=sampling.least,
            tolerance=TOLERANCE,
            seconds=share,
            seed=number,
            progress=tell,
        )
        found += [_without_warm_up(timing, len(samples[name])) for name, timing in timings.items()]
    return found


def _runner(
    method: Method, timings: Timings, source: Path, folder: Path, meter: GpuMeter | None
) -> Callable[[], float]:
    """A call that upscales a batch from files to files, notes its times, and returns the method's own."""

    def run() -> float:
        clock = Clock()
        with clock.running(DECODE):
            images = [open_photograph(source).pixels for _ in range(timings.case.batch)]
        before = meter.joules() if meter else None
        with clock.running(CALL):
            upscaled = method(images)
        after = meter.joules() if meter else None
        if timings.image is None:
            require_pictures(method.name, upscaled.images)
            timings.image = upscaled.images[0]
        with clock.running(ENCODE):
            for number, pixels in enumerate(upscaled.images):
                save(Image.fromarray(pixels), folder / f"output-{number}.png")
        decode, call, encode = clock.seconds.values()
        _note(timings, {DECODE: decode, **_whole(upscaled.seconds, call), ENCODE: encode})
        if before is not None and after is not None:
            timings.joules.append(after - before)
        return call

    return run


def _whole(stages: Mapping[str, float], call: float) -> dict[str, float]:
    """The stages of a call, with all of its time that they leave counted as the host's."""
    rest = call - sum(seconds for stage, seconds in stages.items() if stage != "host")
    return {**stages, "host": max(rest, 0.0)}


def _note(timings: Timings, seconds: Mapping[str, float]) -> None:
    for stage, spent in seconds.items():
        timings.stages.setdefault(stage, []).append(spent)


def _without_warm_up(timings: Timings, rounds: int) -> Timings:
    """Only the last rounds."""
    timings.stages = {stage: seconds[-rounds:] for stage, seconds in timings.stages.items()}
    timings.joules = timings.joules[-rounds:]
    return timings


def summaries(timings: Sequence[Timings]) -> Iterator[tuple[Timings, str, Summary]]:
    """Each of the timings from pixels to pixels, then from files to files."""
    for timing in timings:
        yield timing, CALL, Summary.of(timing.calls)
        yield timing, END_TO_END, Summary.of(timing.whole)

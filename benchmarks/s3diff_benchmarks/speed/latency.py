"""Times calls, file to file and stage by stage, of all methods in turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from s3diff_benchmarks.methods import Input, Method, require_pictures
from s3diff_benchmarks.pictures.pixels import square_of
from s3diff_benchmarks.speed.meters import Counter, energy
from s3diff_benchmarks.statistics import sample_interleaved
from s3diff_runtime.clock import Clock
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import Counted
from s3diff_runtime.vocabulary import Pixels

CALL, END_TO_END = "call", "end to end"
"""From pixels to pixels, and from file to file."""
DECODE, ENCODE = "decode", "encode"
_TOLERANCE, _LEAST_ROUNDS = 0.02, 3


@dataclass(frozen=True)
class Case:
    """What is upscaled in one call: so many equal images."""

    side: int
    """Of the square low-resolution image."""
    batch: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.side} × {self.batch}" if self.batch > 1 else str(self.side)


@dataclass
class Timings:
    """All that was measured of one method in one case; one entry a round, in seconds for the whole batch."""

    method: str
    case: Case
    stages: dict[str, list[float]] = field(default_factory=dict)
    """`decode`, those of the method, `host`, `encode`."""
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


def measure(
    methods: Sequence[Method],
    cases: Sequence[Case],
    image: Pixels,
    folder: Path,
    *,
    seconds: float,
    warm_up: int,
    counter: Counter = lambda: None,
    progress: Counted = lambda done, what: None,
) -> list[Timings]:
    """Time every method in every case, in rounds with an order drawn anew, until the medians are settled.

    Inputs are cut from the middle of `image`, uint8 RGB `[H, W, 3]`; files are read and written in `folder`,
    which is the caller's to remove. `seconds` are for all cases together, each of which gets an equal share;
    `warm_up` runs of every method come before anything counts. `progress` is told the share that is done.

    Returns:
        In the order of the cases, and within each of the methods.

    Raises:
        RequestError, JobError: when a method refuses or fails, or its result is no picture.
    """
    found = []
    share = seconds / len(cases)
    for number, case in enumerate(cases):
        source = folder / f"input-{case.side}.png"
        save(Image.fromarray(square_of(image, case.side)), source)
        timings = {method.name: Timings(method.name, case) for method in methods}

        def tell(done: float, what: str, number: int = number, case: Case = case) -> None:
            progress((number + done / share) / len(cases), f"{what}, {case.label}")

        samples = sample_interleaved(
            {each.name: partial(_run, each, timings[each.name], source, folder, counter) for each in methods},
            warm_up=warm_up,
            least=_LEAST_ROUNDS,
            tolerance=_TOLERANCE,
            seconds=share,
            seed=number,
            progress=tell,
        )
        for name, timing in timings.items():
            for taken in (*timing.stages.values(), timing.joules):
                del taken[: -len(samples[name])]  # of the warm-up
            found.append(timing)
    return found


def _run(method: Method, timings: Timings, source: Path, folder: Path, counter: Counter) -> float:
    """Upscale a batch from files to files, note its times, and return the method's own.

    Each time it is another picture, moved on by a column, so that nothing is found ready which new pictures
    need: the weights of a degradation. All of the call's time that its stages leave is counted as the host's.
    """
    clock, stages, rounds = Clock(), Clock(), len(timings.stages.get(DECODE, ()))
    with clock.running(DECODE):
        pixels = [np.roll(open_photograph(source).pixels, rounds, axis=1) for _ in range(timings.case.batch)]
        inputs = list(map(Input, pixels))
    with energy(counter, timings.joules), clock.running(CALL):
        results = method(inputs)
    if timings.image is None:
        require_pictures(method.name, results)
        timings.image = results[0].pixels
    with clock.running(ENCODE):
        for number, result in enumerate(results):
            save(Image.fromarray(result.pixels), folder / f"output-{number}.png")
    decode, call, encode = clock.seconds.values()
    for result in results:
        stages.add({stage: seconds for stage, seconds in result.seconds.items() if stage != "host"})
    host = max(call - sum(stages.seconds.values()), 0.0)
    taken = {DECODE: decode, **stages.seconds, "host": host, ENCODE: encode}
    for stage in {**timings.stages, **taken}:
        timings.stages.setdefault(stage, [0.0] * rounds).append(taken.get(stage, 0.0))
    return call

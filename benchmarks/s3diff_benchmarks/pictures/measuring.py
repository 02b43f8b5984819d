"""Runs methods over sets of images, and gathers what was measured of each image and method."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from s3diff_benchmarks.methods import Input, Method
from s3diff_benchmarks.pictures.pairs import Case
from s3diff_benchmarks.pictures.scores import Sample, Scores
from s3diff_benchmarks.report.model import Cell
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import counted
from s3diff_runtime.vocabulary import AXES, Pixels
from s3diff_training.metrics import GRID_PERIODS, PATCH, GridSpectrum, flat_patches, luma_pair

GRIDS = {period: f"grid of {period}" for period in GRID_PERIODS}
"""Columns, by the period in pixels."""
FLAT_FRACTION = 0.1
"""Of a truth's patches: the flattest, on which a grid would show."""
_SHOWN = 4


@dataclass(frozen=True)
class ImageSet:
    """Images that are measured together, in tables and a file of their own."""

    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    prefix: str = ""
    """Of the names of their tables, pictures and file."""
    titled: str = ""
    """What is said of them in titles."""
    seeds: int = 1
    """How many cases in a row come from one photograph."""

    @property
    def has_truths(self) -> bool:
        """Whether results can be compared with truths."""
        return self.cases[0].hr is not None

    @property
    def shown(self) -> range:
        """Places of the cases that pictures show: of the first photographs, the first seed."""
        return range(0, len(self.cases), self.seeds)[:_SHOWN]


@dataclass
class Row:
    """One method, and what became of the images, in their order."""

    method: Method
    scores: list[Mapping[str, float]] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)
    conditions: list[tuple[Cell, ...]] = field(default_factory=list)
    """The noise and blur scores that were applied, and the bin."""
    spectrum: GridSpectrum = field(default_factory=GridSpectrum)
    """Of result less truth where the truth is flattest."""
    shown: dict[int, Pixels] = field(default_factory=dict)
    """The results that pictures show, by the place of their case."""

    @property
    def means(self) -> dict[str, float]:
        """All scores by label, over the images; and how far grids stand out."""
        labels = self.scores[0]
        means = {label: float(np.mean([scores[label] for scores in self.scores])) for label in labels}
        return means | {GRIDS[period]: ratio for period, ratio in self.spectrum.ratios().items()}

    @property
    def typical_seconds(self) -> float | None:
        """The median, without the first image, which also pays for what is opened and allocated once."""
        known = [seconds for seconds in self.seconds if seconds is not None]
        return median(known[1:] or known) if known else None


@dataclass(frozen=True)
class Measured:
    """What methods made of a set of images."""

    images: ImageSet
    scores: Scores
    rows: tuple[Row, ...]
    """Bicubic interpolation, then what is measured, then what stands beside it."""


def measure(images: ImageSet, methods: Sequence[Method], scores: Scores) -> Measured:
    """Restore every image with every method, image by image, and score the results.

    Raises:
        RequestError, JobError: see `Method`, and `open_photograph` for damaged images.
    """
    rows = tuple(Row(method) for method in methods)
    scores = scores if images.has_truths else scores.without_truth()
    with counted(len(images.cases) * len(rows), "quality") as tell:
        for number, case in enumerate(images.cases):
            lr = open_photograph(case.lr).pixels
            truth = None if case.hr is None else open_photograph(case.hr).pixels
            for place, row in enumerate(rows):
                tell(number * len(rows) + place, f"{row.method.name}: {case.name}")
                (result,) = row.method([Input(lr, case.name)])
                row.scores.append(scores.measure(Sample(result.pixels, lr, truth)))
                row.seconds.append(result.total_seconds)
                row.conditions.append((*map(result.applied.get, AXES), result.bin))
                if truth is not None and min(truth.shape[:2]) >= PATCH:
                    residual = np.subtract(*luma_pair(result.pixels, truth))
                    windows = flat_patches(truth, FLAT_FRACTION)
                    row.spectrum.add(np.stack([residual[window] for window in windows]))
                if number in images.shown:
                    row.shown[number] = result.pixels
    return Measured(images, scores, rows)


def per_image_csv(measured: Measured) -> str:
    """One line for each image and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "method", *measured.scores.labels, "seconds", *AXES, "bin"])
    for number, case in enumerate(measured.images.cases):
        for row in measured.rows:
            figures = (*row.scores[number].values(), row.seconds[number], *row.conditions[number])
            writer.writerow([case.name, row.method.name, *figures])
    return text.getvalue()

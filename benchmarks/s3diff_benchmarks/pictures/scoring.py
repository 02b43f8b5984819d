"""What a score is: a figure of an upscaled image, and its mean over many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from s3diff_benchmarks.report.model import Cell, Column, bounds_of
from s3diff_benchmarks.statistics import Mean
from s3diff_runtime.vocabulary import Pixels


@dataclass(frozen=True)
class Sample:
    """A result, uint8 RGB `[4H, 4W, 3]`, with its input `[H, W, 3]` and its truth where there is one."""

    result: Pixels
    lr: Pixels
    truth: Pixels | None = None


@dataclass(frozen=True)
class Score:
    """One figure of a sample."""

    label: str
    better: Literal["lower", "higher", ""]
    measure: Callable[[Sample], float]
    unit: str = ""
    digits: int = 4
    needs_truth: bool = False

    def columns(self) -> tuple[Column, ...]:
        """The mean's column, and those of its interval."""
        mean = Column(name=self.label, unit=self.unit, better=self.better, digits=self.digits)
        bounds = (Column(name=name, unit=self.unit, digits=self.digits) for name in bounds_of(self.label))
        return mean, *bounds


@dataclass(frozen=True)
class Scores:
    """What is measured of every sample, and where its parts came from."""

    scores: tuple[Score, ...]
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(score.label for score in self.scores)

    def without_truth(self) -> Scores:
        """Those of an image and its input alone."""
        return replace(self, scores=tuple(score for score in self.scores if not score.needs_truth))

    def measure(self, sample: Sample) -> dict[str, float]:
        """All scores by label; PSNR of equal images is infinite."""
        return {score.label: score.measure(sample) for score in self.scores}

    def columns(self) -> tuple[Column, ...]:
        """Of a table of means: three for each score."""
        return tuple(column for score in self.scores for column in score.columns())

    def means(self, rows: Sequence[Mapping[str, float]]) -> tuple[Cell, ...]:
        """The cells under `columns`: mean and its 95 % interval.

        All are empty where a score is infinite, and the interval where there is only one image.
        """
        cells: list[Cell] = []
        for score in self.scores:
            values = [row[score.label] for row in rows]
            if not np.isfinite(values).all():
                cells += [None, None, None]
                continue
            mean = Mean.of(values)
            cells += [mean.mean, *((mean.low, mean.high) if mean.count > 1 else (None, None))]
        return tuple(cells)

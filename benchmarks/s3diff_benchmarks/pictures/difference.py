"""How far apart images are that should be the same, in figures for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s3diff_benchmarks.report.model import Cell, Column
from s3diff_runtime.vocabulary import Pixels

COLUMNS = (
    Column(name="error", unit="levels", better="lower"),
    Column(name="PSNR", unit="dB", better="higher", digits=4),
    Column(name="PSNR of the worst", unit="dB", better="higher", digits=4),
    Column(name="largest difference", unit="levels", better="lower"),
)
"""Of `Difference.cells`."""
NOTE = "error: root mean square over all pixels and channels, of 255 levels; PSNR is empty for equal images."


@dataclass(frozen=True)
class Difference:
    """How two images, or several pairs of them, differ; in levels of 255."""

    squares: tuple[float, ...]
    """Mean squared error of each pair, over R, G and B."""
    largest: int
    """Difference of any two levels."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[Pixels, Pixels]]) -> Difference:
        """Compare pairs of uint8 images of equal shapes; at least one."""
        apart = [first.astype(np.int16) - second for first, second in pairs]
        return cls(
            tuple(float(np.mean(np.square(one, dtype=np.int32))) for one in apart),
            max(int(np.abs(one).max()) for one in apart),
        )

    @property
    def root(self) -> float:
        """Root of the mean squared error, in levels."""
        return float(np.sqrt(np.mean(self.squares)))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Under `COLUMNS`; PSNR is empty where images are equal."""
        mean, worst = float(np.mean(self.squares)), max(self.squares)
        return self.root, _psnr(mean), _psnr(worst), self.largest


def _psnr(square: float) -> float | None:
    return None if square == 0 else float(10 * np.log10(255**2 / square))

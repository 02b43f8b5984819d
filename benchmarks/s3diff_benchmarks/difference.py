"""How far apart images are that should be the same, in figures for tables and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s3diff_benchmarks.report import Cell, Column, Plot, Series
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


def curve(
    name: str, title: str, x_label: str, lines: Mapping[str, Mapping[float, Difference]], log_x: bool = False
) -> Plot:
    """Root mean square errors against a number, one line for each name."""
    return Plot(
        name=name,
        title=title,
        kind="line",
        x_label=x_label,
        y_label="error (levels of 255)",
        log_x=log_x,
        from_zero=True,
        series=tuple(
            Series(
                name=line,
                x=tuple(map(float, found)),
                y=tuple(difference.root for difference in found.values()),
            )
            for line, found in lines.items()
        ),
    )


def _psnr(square: float) -> float | None:
    return None if square == 0 else float(10 * np.log10(255**2 / square))

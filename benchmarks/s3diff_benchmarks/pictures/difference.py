"""How far apart images are that should be the same, in figures for tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s3diff_benchmarks.report.model import Cell, Column
from s3diff_runtime.vocabulary import Pixels

COLUMNS = (
    Column(name="error", unit="levels", better="lower"),
    Column(name="PSNR", unit="dB", better="higher", digits=4),
    Column(name="PSNR of the worst", unit="dB", better="higher", digits=4),
    Column(name="largest difference", unit="levels", better="lower"),
)
"""Of what `differences` gives."""
NOTE = "error: root mean square over all pixels and channels, of 255 levels; PSNR is empty for equal images."


def differences(pairs: Sequence[tuple[Pixels, Pixels]]) -> tuple[Cell, ...]:
    """The cells under `COLUMNS` for pairs of uint8 images of equal shapes; at least one.

    PSNR is empty where all images, or those of the worst pair, are equal.
    """
    apart = [first.astype(np.int16) - second for first, second in pairs]
    squares = [float(np.mean(np.square(one, dtype=np.int32))) for one in apart]
    mean, largest = float(np.mean(squares)), max(int(np.abs(one).max()) for one in apart)
    return float(np.sqrt(mean)), _psnr(mean), _psnr(max(squares)), largest


def _psnr(square: float) -> float | None:
    return None if square == 0 else float(10 * np.log10(255**2 / square))

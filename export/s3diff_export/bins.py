"""Bins of degradation space: a grid of them, or those of a file."""

import re
from pathlib import Path

from s3diff_runtime.bundle.manifest import Bin
from s3diff_runtime.errors import RequestError
from s3diff_runtime.files import read_csv

_GRID = re.compile(r"([1-9]\d?)x([1-9]\d?)")


def grid(noise: int, blur: int) -> tuple[Bin, ...]:
    """The centres of a grid of equal cells: `noise` by `blur` of them."""
    return tuple(
        _bin((row + 0.5) / noise, (column + 0.5) / blur) for row in range(noise) for column in range(blur)
    )


def parse_bins(text: str) -> tuple[Bin, ...]:
    """Bins from `3x3` (noise by blur) or from a CSV file with the columns `noise` and `blur`.

    Raises:
        RequestError: for anything else; names every bad line of a file.
    """
    match = _GRID.fullmatch(text)
    if match:
        return grid(int(match[1]), int(match[2]))
    path = Path(text)
    if not path.is_file():
        raise RequestError(f"bins {text!r}: expected a grid such as 3x3, or a CSV file with noise and blur")
    columns, rows = read_csv(path, f"bins {path}")
    if set(columns) != {"noise", "blur"}:
        raise RequestError(f"{path} has columns {', '.join(columns) or 'none'}; expected noise,blur")
    bins, problems = [], []
    for number, row in enumerate(rows, start=2):
        try:
            bins.append(_bin(float(row["noise"] or ""), float(row["blur"] or "")))
        except (TypeError, ValueError):
            problems.append(f"line {number}: noise {row['noise']!r}, blur {row['blur']!r}")
    names = [bin.name for bin in bins]
    problems += [f"{name} twice (centres closer than 0.01)" for name in set(names) if names.count(name) > 1]
    if problems or not bins:
        raise RequestError(f"{path} needs centres in [0, 1]; wrong: {'; '.join(problems) or 'no lines'}")
    return tuple(bins)


def _bin(noise: float, blur: float) -> Bin:
    return Bin(name=f"noise{round(noise * 100):03d}-blur{round(blur * 100):03d}", noise=noise, blur=blur)

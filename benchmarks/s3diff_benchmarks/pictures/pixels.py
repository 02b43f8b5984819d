"""Pixels to measure with, and how far apart those are that should be the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s3diff_benchmarks.report.model import Cell
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.drawn_pictures import draw_picture

NOTE = "error: root mean square over all pixels and channels, of 255 levels; PSNR is empty for equal images."


def given_or_drawn(path: Path | None) -> Pixels:
    """A photograph, or for None a drawn picture of 512 pixels a side: uint8 RGB `[H, W, 3]`.

    Raises:
        RequestError: when there is no such photograph.
    """
    return open_photograph(path).pixels if path else draw_picture(512, 512, seed=0)


def middle(pixels: Pixels, side: int) -> Pixels:
    """The middle of an image, at most `side` pixels a side; shares its memory."""
    top, left = (max(length - side, 0) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def square_of(image: Pixels, side: int) -> Pixels:
    """A square of that side from the middle of an image, mirrored at its borders where it is too small."""
    cut = middle(image, side)
    missing = [(0, side - length) for length in cut.shape[:2]]
    return np.pad(cut, [*missing, (0, 0)], mode="symmetric")


def differences(pairs: Sequence[tuple[Pixels, Pixels]]) -> tuple[Cell, ...]:
    """Error, PSNR, PSNR of the worst and largest difference of pairs of uint8 images of equal shapes.

    PSNR is empty where all images, or those of the worst pair, are equal.
    """
    apart = [first.astype(np.int16) - second for first, second in pairs]
    squares = [float(np.mean(np.square(one, dtype=np.int32))) for one in apart]
    mean = float(np.mean(squares))
    psnr, worst = (float(10 * np.log10(255**2 / each)) if each else None for each in (mean, max(squares)))
    return float(np.sqrt(mean)), psnr, worst, max(int(np.abs(one).max()) for one in apart)

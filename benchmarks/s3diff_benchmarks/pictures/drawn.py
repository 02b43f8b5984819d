"""Pictures to measure with: drawn ones, for want of a particular one, and the middles of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.pictures.photograph import open_photograph

_ELLIPSES = 6


def draw_picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Coloured 1/f noise, whose spectrum is that of photographs, with ellipses for edges and a little noise.

    Returns:
        uint8 RGB `[height, width, 3]`, the same for the same seed.
    """
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / (frequency + 1 / max(height, width))
    picture = np.fft.irfft2(spectrum, (height, width)).transpose(1, 2, 0)
    picture = 128 + 40 * (picture - picture.mean()) / picture.std()
    rows, columns = np.mgrid[:height, :width]
    for _ in range(_ELLIPSES):
        centre = random.uniform(0, 1, 2) * (height, width)
        radii = random.uniform(0.05, 0.3, 2) * min(height, width)
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        picture[inside] = 0.5 * picture[inside] + random.uniform(0, 128, 3)
    return np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).round().astype(np.uint8)


def given_or_drawn(path: Path | None) -> NDArray[np.uint8]:
    """A photograph, or for None a drawn picture of 512 pixels a side: uint8 RGB `[H, W, 3]`.

    Raises:
        RequestError: when there is no such photograph.
    """
    return open_photograph(path).pixels if path else draw_picture(512, 512, seed=0)


def middle(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle of an image, at most `side` pixels a side; shares its memory."""
    top, left = (max(length - side, 0) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]

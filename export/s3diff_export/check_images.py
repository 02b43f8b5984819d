"""Pictures to check a bundle on: real ones from a folder, or drawn ones where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.errors import RequestError
from s3diff_training.data import PhotographFolder

DRAWN_SIZES = ((48, 64), (37, 53), (64, 32))
"""Heights and widths of the drawn pictures: multiples of the network's and others."""
LARGEST_SIDE = 64


def check_images(folder: Path | None, count: int = 3) -> list[NDArray[np.uint8]]:
    """LR pictures uint8 `[H, W, 3]` to run a bundle on.

    Args:
        folder: of low-resolution photographs, of which the first are cut to 64 pixels a side; None draws
            pictures with the spectrum of photographs, edges and noise.
        count: how many of the folder's.

    Raises:
        RequestError: for a folder without usable pictures.
    """
    if folder is None:
        return [_draw(height, width, seed) for seed, (height, width) in enumerate(DRAWN_SIZES)]
    photographs = PhotographFolder(folder, min_side=16, memory_mib=0)
    indices = np.linspace(0, len(photographs) - 1, min(count, len(photographs))).round().astype(int)
    cut = [
        photographs.pixels_of(int(index))[:LARGEST_SIDE, :LARGEST_SIDE] for index in dict.fromkeys(indices)
    ]
    flat = [path.name for path, image in zip(photographs.paths, cut, strict=False) if np.ptp(image) == 0]
    if flat:
        raise RequestError(f"check image {flat[0]} is of one colour; expected a photograph")
    return [np.ascontiguousarray(image) for image in cut]


def _draw(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Coloured 1/f noise, as in photographs, with ellipses for edges and a little noise."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(
        height, width
    )
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
    picture = np.fft.irfft2(spectrum, (height, width)).transpose(1, 2, 0)
    picture = 128 + 40 * (picture - picture.mean()) / picture.std()
    rows, columns = np.mgrid[:height, :width]
    for _ in range(4):
        centre, radii = random.uniform(0, 1, 2) * (height, width), random.uniform(4, 20, 2)
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        picture[inside] = 0.5 * picture[inside] + random.uniform(0, 128, 3)
    return np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).round().astype(np.uint8)

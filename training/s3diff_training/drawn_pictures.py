"""Drawn pictures, for want of photographs: with their spectrum, edges and noise."""

import numpy as np

from s3diff_runtime.vocabulary import Pixels


def draw_picture(
    height: int, width: int, seed: int, ellipses: int = 6, radii: tuple[float, float] | None = None
) -> Pixels:
    """Coloured 1/f noise, whose spectrum is that of photographs, with ellipses for edges and a little noise.

    Args:
        height: in pixels.
        width: likewise.
        seed: the same picture for the same seed.
        ellipses: how many.
        radii: the least and the largest, in pixels; None is 5 to 30 % of the shorter side.

    Returns:
        uint8 RGB `[height, width, 3]`.
    """
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / (frequency + 1 / max(height, width))
    picture = np.fft.irfft2(spectrum, (height, width)).transpose(1, 2, 0)
    picture = 128 + 40 * (picture - picture.mean()) / picture.std()
    rows, columns = np.mgrid[:height, :width]
    least, largest = radii or (0.05 * min(height, width), 0.3 * min(height, width))
    for _ in range(ellipses):
        centre, radius = random.uniform(0, 1, 2) * (height, width), random.uniform(least, largest, 2)
        inside = ((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2 < 1
        picture[inside] = 0.5 * picture[inside] + random.uniform(0, 128, 3)
    return np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).round().astype(np.uint8)

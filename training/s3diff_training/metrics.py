"""Image quality against a truth, on luma, and the spectral signs of generated texture.

PSNR and SSIM follow the super-resolution literature, and with it the paper (section 4.1): both on the Y
channel of ITU-R BT.601 at video range (16 to 235), SSIM as defined by Wang et al. 2004. The spectral helpers
find what those scores miss: regular grids left by strided layers, and how much fine detail an image carries.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from s3diff_runtime.vocabulary import Pixels

FloatImage = NDArray[np.float64]

_LUMA = np.array([65.481, 128.553, 24.966]) / 255.0
_LUMA_OFFSET, _PEAK = 16.0, 255.0
_WINDOW_RADIUS, _WINDOW_SIGMA = 5, 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2

GRID_PERIODS = (4, 8)
PATCH = 64
"""Side of the patches whose spectrum can tell the periods apart."""
# A windowed wave reaches the bins next to its own; the surround it is compared with lies beyond, up to this
# distance.
_MAIN_LOBE, _SURROUND = 1, 3
# Power, in grey levels squared, that counts as none: keeps constant images at a ratio of 1.
_NO_POWER = 1e-9


def luma(image: Pixels) -> FloatImage:
    """Y of BT.601 at video range: uint8 RGB [H, W, 3] -> float64 [H, W] in [16, 235], not rounded.

    Raises `ValueError` for any other shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 RGB image [H, W, 3], got {image.dtype} {list(image.shape)}")
    return image.astype(np.float64) @ _LUMA + _LUMA_OFFSET


def luma_pair(image: Pixels, truth: Pixels) -> tuple[FloatImage, FloatImage]:
    """Y of an image and of its truth, see `luma`. Raises `ValueError` if shapes or dtypes do not fit."""
    if image.shape != truth.shape:
        shapes = f"{list(image.shape)} and {list(truth.shape)}"
        raise ValueError(f"an image and its truth differ in shape: {shapes}")
    return luma(image), luma(truth)


def psnr_y(image: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio on Y in dB, peak 255; infinite for equal images.

    Inputs: uint8 RGB [H, W, 3].

    Raises `ValueError` if shapes or dtypes do not fit.
    """
    error = np.mean(np.subtract(*luma_pair(image, truth)) ** 2)
    return float(10.0 * np.log10(_PEAK**2 / error)) if error else float("inf")


def ssim_y(image: Pixels, truth: Pixels) -> float:
    """Structural similarity on Y, in [-1, 1]: Gaussian 11x11 window, sigma 1.5, averaged where it fits whole.

    Inputs: uint8 RGB [H, W, 3]. Source: Wang et al. 2004, K1 = 0.01, K2 = 0.03, L = 255.
    Raises `ValueError` if shapes or dtypes do not fit, or a side is shorter than the window.
    """
    a, b = luma_pair(image, truth)
    if min(a.shape) < 2 * _WINDOW_RADIUS + 1:
        raise ValueError(f"SSIM needs sides of at least {2 * _WINDOW_RADIUS + 1} pixels, got {list(a.shape)}")
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a**2
    variance_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    brightness = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return float(np.mean(brightness * structure))


def high_frequency_energy(image: Pixels) -> float:
    """Power of Y above half the Nyquist frequency (0.25 cycles per pixel), in grey levels squared.

    Input: uint8 RGB [H, W, 3]. The radius of the two-dimensional frequency decides; a wave of amplitude A
    counts A^2 / 2 (times its envelope under the Hann window that keeps the image's borders from counting as
    detail). Raises `ValueError` for any other shape or dtype.
    """
    power = _power_spectrum(luma(image)[None])
    vertical = np.fft.fftfreq(power.shape[0])[:, None]
    horizontal = np.fft.fftfreq(power.shape[1])[None, :]
    return float(power[np.hypot(vertical, horizontal) > 0.25].sum())


class GridSpectrum:
    """The mean spectrum of patches, added as they come: tells whether a regular grid lies over them."""

    def __init__(self) -> None:
        self._power, self._count = np.zeros((PATCH, PATCH)), 0

    def add(self, patches: FloatImage) -> None:
        """Take in patches `[N, 64, 64]`, in grey levels: outputs minus truth, or the luma of flat regions.

        Raises `ValueError` for other shapes.
        """
        if patches.ndim != 3 or patches.shape[1:] != (PATCH, PATCH):
            raise ValueError(f"expected patches [N, {PATCH}, {PATCH}], got {list(patches.shape)}")
        if len(patches):
            self._power += len(patches) * _power_spectrum(patches)
            self._count += len(patches)

    def ratios(self) -> dict[int, float]:
        """How far a grid of period 4 and of period 8 pixels stands out: {period: ratio}, about 1 without one.

        The power at frequency 1/period on either axis and on the diagonals is divided by the power density of
        the frequencies around those points: the spectrum of natural detail is smooth and cancels, a strided
        network's grid is a line. Constant images give 1; compare others with their truth, whose own lines
        (fabric, bricks) count too. On white noise 99 of 100 values lie in 0.2 to 2.6 for one patch, in 0.7 to
        1.35 for 20. Empty where there was no patch.
        """
        if not self._count:
            return {}
        power = self._power / self._count
        return {period: _peak_ratio(power, PATCH // period) for period in GRID_PERIODS}


def flat_patches(truth: Pixels, fraction: float) -> list[tuple[slice, slice]]:
    """The flattest patches of an image, as (rows, columns) windows to cut from it and its like.

    `truth` is uint8 RGB [H, W, 3]; its whole 64 x 64 tiles are ordered by the mean squared gradient of Y and
    the lowest `fraction` of them, in (0, 1] and at least one tile, is returned, flattest first.
    Raises `ValueError` if the image holds no tile or the fraction is out of range.
    """
    values = luma(truth)
    if not 0.0 < fraction <= 1.0 or min(values.shape) < PATCH:
        raise ValueError(
            f"expected a fraction in (0, 1] and an image of at least {PATCH} pixels a side, "
            f"got {fraction} and {list(values.shape)}"
        )
    corners = product(*(range(0, side - PATCH + 1, PATCH) for side in values.shape))
    windows = [(slice(top, top + PATCH), slice(left, left + PATCH)) for top, left in corners]
    windows.sort(key=lambda window: sum(np.mean(np.diff(values[window], axis=axis) ** 2) for axis in (0, 1)))
    return windows[: max(1, round(fraction * len(windows)))]


def spearman(a: Sequence[float] | FloatImage, b: Sequence[float] | FloatImage) -> float:
    """Rank correlation of two equally long sequences of numbers, in [-1, 1]; ties share their mean rank.

    NaN where all values of a sequence are equal. Raises `ValueError` if the lengths differ or there are fewer
    than two values.
    """
    from scipy.stats import spearmanr  # takes a second to import

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"expected two sequences of one length >= 2, got {first.shape} and {second.shape}")
    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def _window_mean(values: FloatImage) -> FloatImage:
    """Gaussian-weighted mean of each whole window: [H, W] -> [H - 10, W - 10]."""
    inside = slice(_WINDOW_RADIUS, -_WINDOW_RADIUS)
    return np.asarray(gaussian_filter(values, _WINDOW_SIGMA, radius=_WINDOW_RADIUS)[inside, inside])


def _power_spectrum(stack: FloatImage) -> FloatImage:
    """Mean power per frequency of centred images [N, H, W] under a Hann window: [H, W], FFT order.

    Scaled so that the sum over frequencies is the images' variance (as the window sees it).
    """
    height, width = stack.shape[1:]
    # The periodic form of the window: a wave of whole periods then stays within one bin of its frequency.
    window = np.outer(*(np.hanning(side + 1)[:-1] for side in (height, width)))
    centred = stack - stack.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(centred * window)) ** 2 / (height * width * np.sum(window**2))
    return np.asarray(power.mean(axis=0))


def _peak_ratio(power: FloatImage, at: int) -> float:
    """Power density at (at, 0), (0, at) and (at, +-at) relative to that around these points."""
    offsets = np.arange(-_SURROUND, _SURROUND + 1)
    beyond = np.maximum(np.abs(offsets)[:, None], np.abs(offsets)[None, :]) > _MAIN_LOBE
    peak = surround = 0.0
    for row, column in ((at, 0), (0, at), (at, at), (at, -at)):
        block = power[np.ix_((row + offsets) % PATCH, (column + offsets) % PATCH)]
        peak += float(block[_SURROUND, _SURROUND])
        surround += float(block[beyond].mean())
    return (peak + _NO_POWER) / (surround + _NO_POWER)

"""Colours under transparency: what nobody sees must not bleed into what is seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.vocabulary import Pixels

_TRUSTED_ALPHA = 32
"""From here on a pixel's own colour counts alone. Below, editors leave rounded or arbitrary colours, which
show little in their own place and much where an enlargement mixes them into neighbours."""


def without_hidden_colors(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Give transparent pixels the colours of the opaque ones around them; others keep theirs, bit for bit.

    Colours spread from fine to coarse: a pixel takes the mean, weighted by alpha, of the smallest block
    around it that holds any colour ("pull-push", Gortler et al. 1996).

    Args:
        pixels: `[H, W, 3]`.
        alpha: `[H, W]`, 0 for transparent.
    """
    if alpha.min() >= _TRUSTED_ALPHA or not alpha.any():
        return pixels
    weight = np.minimum(alpha, _TRUSTED_ALPHA)[..., None].astype(np.float32)
    weight = np.square(weight / np.float32(_TRUSTED_ALPHA), dtype=np.float32)
    filled = np.rint(_spread(pixels.astype(np.float32), weight)).astype(np.uint8)
    result = pixels.copy()
    faint = alpha < _TRUSTED_ALPHA
    result[faint] = filled[faint]
    return result


def _spread(colors: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill in where `weight` `[H, W, 1]`, in [0, 1], is less than 1."""
    height, width = weight.shape[:2]
    if height * width == 1 or weight.min() == 1:
        return colors
    coarse_weight = _halved(weight)
    coarse = _halved(colors * weight)
    coarse /= np.maximum(coarse_weight, np.float32(1e-12))
    # One full pixel in a block says enough about its colour; a thousandth of one does not.
    below = _spread(coarse, np.minimum(4 * coarse_weight, 1))
    below = below.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return colors * weight + below * (1 - weight)


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of blocks of 2×2; what lies beyond the border counts as nothing."""
    height, width = values.shape[:2]
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    total: NDArray[np.float32] = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return total / np.float32(4)

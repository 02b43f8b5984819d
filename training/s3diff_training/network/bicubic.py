"""Bicubic interpolation (Keys 1981) by a whole number, PyTorch's and Pillow's, as a graph can hold it.

Both are convolutions, which engines run several times as fast as their interpolations.
"""

import torch
from torch import Tensor
from torch.nn import functional

from s3diff_runtime.vocabulary import SCALE

_REACH = 2
"""Pixels to each side that a new pixel is made from."""
_PYTORCH, _PILLOW = -0.75, -0.5
"""Sharpness: the kernel's parameter a."""


def bicubic_upscale(image: Tensor, scale: int = SCALE) -> Tensor:
    """PyTorch's bicubic, with `align_corners=False` and no antialiasing; values may overshoot.

    In float32 it differs from PyTorch's by 1e-6, by 1e-5 for a scale of 3, where PyTorch rounds the places of
    new pixels.
    """
    if scale == 1:
        return image
    rows = _kernel(scale, _PYTORCH)
    kernel = torch.einsum("ai,bj->abij", rows, rows).flatten(0, 1)[:, None].to(image)
    padded = functional.pad(image, (_REACH,) * 4, mode="replicate")
    phases = functional.conv2d(padded.flatten(0, 1)[:, None], kernel)
    return functional.pixel_shuffle(phases, scale).squeeze(1).unflatten(0, (-1, image.shape[1]))


def bicubic(image: Tensor, scale: int = SCALE) -> Tensor:
    """The baseline restorer, and whose colours results get: `[N, 3, h, w]` in [0, 1], enlarged, clamped."""
    return bicubic_upscale(image, scale).clamp(0, 1)


def pillow_bicubic(image: Tensor, scale: int) -> Tensor:
    """`[N, C, h, w]` of grey levels / 255 to `[N, C, scale h, scale w]` of the same, as Pillow computes it.

    `Image.resize(..., BICUBIC)` goes over the columns, rounds to 8 bits, then over the rows, and rounds
    again. At the borders its kernel is cut and its weights are normalised. For the scales 1, 2 and 4 every
    sum is exact in float32, so the result is Pillow's to the bit, but for ties where the kernel is cut.
    """
    if scale == 1:
        return image
    levels = (image * 255).round()
    levels = _enlarged_columns(levels, scale)
    levels = _enlarged_columns(levels.transpose(2, 3), scale).transpose(2, 3)
    return levels / 255


def _enlarged_columns(levels: Tensor, scale: int) -> Tensor:
    """`[N, C, h, w]` to `[N, C, h, scale w]`, rounded half up to grey levels."""
    channels, kernel = levels.shape[1], _kernel(scale, _PILLOW)[:, None, None].to(levels)
    lines = levels.flatten(0, 1)[:, None]
    sums = functional.conv2d(lines, kernel, padding=(0, _REACH))
    ones = lines[:1, :, :1] * 0 + 1  # an exporter takes torch.ones_like for a constant of one size
    weights = functional.conv2d(ones, kernel, padding=(0, _REACH))
    phases = (sums / weights + 0.5).floor().clamp(0, 255)
    return phases.permute(0, 2, 3, 1).flatten(2).unflatten(0, (-1, channels))


def _kernel(scale: int, sharpness: float) -> Tensor:
    """`[scale, 5]`, float64: weights of five pixels about one, for each of the new pixels in its place."""
    new = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    x = (torch.arange(-_REACH, _REACH + 1) - new[:, None]).abs()
    near = ((sharpness + 2) * x - (sharpness + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * sharpness
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))

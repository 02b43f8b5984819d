"""Pillow's bicubic interpolation of 8-bit pictures as tensors, as a graph can hold it."""

from torch import Tensor
from torch.nn.functional import conv2d

from s3diff_training.network.keys import REACH, cubic_kernel

_SHARPNESS = -0.5


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
    channels, kernel = levels.shape[1], cubic_kernel(scale, _SHARPNESS)[:, None, None].to(levels)
    lines = levels.flatten(0, 1)[:, None]
    sums = conv2d(lines, kernel, padding=(0, REACH))
    ones = lines[:1, :, :1] * 0 + 1  # an exporter takes torch.ones_like for a constant of one size
    weights = conv2d(ones, kernel, padding=(0, REACH))
    phases = (sums / weights + 0.5).floor().clamp(0, 255)
    return phases.permute(0, 2, 3, 1).flatten(2).unflatten(0, (-1, channels))

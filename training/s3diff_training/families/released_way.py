"""How the released codes of OSEDiff and PiSA-SR prepare a picture and finish it, for comparison with them.

What they do to a picture's edges and levels is of their scripts, not of their networks: they squeeze it to a
multiple of 8 pixels, enlarge small ones first, and cut grey levels off where they should be rounded. Bundles,
and `OneStepNetwork.restore`, give results of the right size instead.
"""

import numpy as np
from PIL import Image
from torch import Tensor

from s3diff_runtime.vocabulary import ColorFix, Pixels
from s3diff_training.data import to_uint8
from s3diff_training.network.color import correct_color

PROCESS_SIZE = 512
"""Shorter side of a result, in pixels, below which pictures are enlarged first."""
_MULTIPLE = 8
_BICUBIC = Image.Resampling.BICUBIC


def prepared(pixels: Pixels, scale: int, process_size: int) -> Pixels:
    """What the released scripts make of a picture `[H, W, 3]` before the network: uint8, 8 | both sides.

    Enlarged first where it `is_small`, then by the scale, both with Pillow's bicubic filter at 8 bits, then
    squeezed with Lanczos' to the next lower multiples of 8.
    """
    picture = Image.fromarray(pixels)
    if is_small(pixels, scale, process_size):
        factor = (process_size // scale) / min(picture.size)
        picture = picture.resize((int(factor * picture.width), int(factor * picture.height)), _BICUBIC)
    picture = picture.resize((picture.width * scale, picture.height * scale), _BICUBIC)
    width, height = (side - side % _MULTIPLE for side in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def finished(decoded: Tensor, before: Tensor, color_fix: ColorFix) -> Pixels:
    """What they make of the decoded picture `[1, 3, H, W]` in [-1, 1], whose input in [0, 1] was `before`."""
    levels = _truncated((decoded / 2 + 0.5).clamp(0, 1))
    if color_fix != "none":
        levels = _truncated(correct_color(levels, before, color_fix))
    return to_uint8(levels)


def brought_back(result: Pixels, pixels: Pixels, scale: int) -> Pixels:
    """The result for a picture that was enlarged first, at its size."""
    height, width = (side * scale for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(result).resize((width, height), _BICUBIC))


def is_small(pixels: Pixels, scale: int, process_size: int) -> bool:
    """Whether the scripts enlarge a picture first: with a side under `process_size // scale`."""
    return min(pixels.shape[:2]) < process_size // scale


def _truncated(image: Tensor) -> Tensor:
    """`[N, 3, H, W]` in [0, 1] cut to grey levels / 255."""
    return (image * 255).floor() / 255

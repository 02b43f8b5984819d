"""How the released codes of OSEDiff and PiSA-SR prepare a picture and finish it, for comparison with them.

What they do to a picture's edges and levels is of their scripts, not of their networks: they squeeze it to a
multiple of 8 pixels, enlarge small ones first, and cut grey levels off where they should be rounded. Bundles,
and `OneStepNetwork.restore`, give results of the right size instead.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from s3diff_runtime.vocabulary import SCALE, ColorFix, Pixels
from s3diff_training.data import from_uint8, to_uint8
from s3diff_training.network.color import correct_color
from s3diff_training.network.one_step_network import OneStepNetwork

PROCESS_SIZE = 512
"""Shorter side of a result, in pixels, below which pictures are enlarged first."""
_MULTIPLE = 8
_BICUBIC = Image.Resampling.BICUBIC


def prepared(pixels: Pixels, scale: int = SCALE, process_size: int = PROCESS_SIZE) -> Pixels:
    """What the released scripts make of a picture `[H, W, 3]` before the network: uint8, 8 | both sides.

    Enlarged first where a side is under `process_size // scale`, then by the scale, both with Pillow's
    bicubic filter at 8 bits, then squeezed with Lanczos' to the next lower multiples of 8.
    """
    picture = Image.fromarray(pixels)
    if _is_small(pixels, scale, process_size):
        factor = (process_size // scale) / min(picture.size)
        picture = picture.resize((int(factor * picture.width), int(factor * picture.height)), _BICUBIC)
    picture = picture.resize((picture.width * scale, picture.height * scale), _BICUBIC)
    width, height = (side - side % _MULTIPLE for side in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def restored_as_released(
    network: OneStepNetwork,
    pixels: Pixels,
    asked: Mapping[str, Any],
    *,
    scale: int = SCALE,
    color_fix: ColorFix | None = None,
    process_size: int = PROCESS_SIZE,
    brings_back: bool,
) -> Pixels:
    """Restore one picture `[H, W, 3]` as a released script does, but with the posterior's mode for a sample
    of it, and without tiles.

    Args:
        network: in fp32.
        pixels: uint8 RGB.
        asked: further arguments of `restore`.
        scale, color_fix: as there.
        process_size: the script's option.
        brings_back: whether a picture that was enlarged first is brought to its size at the end.
    """
    before = prepared(pixels, scale, process_size)
    image = from_uint8(before)[None]
    decoded = network.restore(image, **{**asked, "scale": 1, "color_fix": "none"}).forward.decoded
    levels = _truncated((decoded / 2 + 0.5).clamp(0, 1))
    color_fix = network.usual_color_fix(color_fix)
    if color_fix != "none":
        levels = _truncated(correct_color(levels, image, color_fix))
    result = to_uint8(levels)
    if brings_back and _is_small(pixels, scale, process_size):
        height, width = (side * scale for side in pixels.shape[:2])
        result = np.asarray(Image.fromarray(result).resize((width, height), _BICUBIC))
    return result


def _is_small(pixels: Pixels, scale: int, process_size: int) -> bool:
    return min(pixels.shape[:2]) < process_size // scale


def _truncated(image: Tensor) -> Tensor:
    """`[N, 3, H, W]` in [0, 1] cut to grey levels / 255."""
    return (image * 255).floor() / 255

"""Words that all rooms share: what is upscaled by how much, corrected how, and named what."""

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

SCALE: Final = 4
"""Upscaling factor of the papers: output side over input side."""

SCALES: Final = (1, 2, 3, 4)
"""The factors that can be asked for. Whatever the factor, the networks work at the size of the result."""

Pixels = NDArray[np.uint8]
"""A picture: uint8 RGB `[H, W, 3]`, or a batch of them `[N, H, W, 3]`."""

ColorFix = Literal["wavelet", "adain", "none"]
"""How the colours of a result are brought back to its input's."""
COLOR_FIXES: tuple[ColorFix, ...] = get_args(ColorFix)

Precision = Literal["fp32", "fp16"]
"""Of weights and activations inside the UNet and the VAE."""

Axis = Literal["noise", "blur"]
"""What a degradation score measures."""
AXES: tuple[Axis, ...] = get_args(Axis)

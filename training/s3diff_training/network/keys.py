"""The kernel of bicubic interpolation (Keys 1981), as enlarging by a whole number needs it."""

import torch
from torch import Tensor

REACH = 2
"""Pixels to each side that a new pixel is made from."""


def cubic_kernel(scale: int, sharpness: float) -> Tensor:
    """`[scale, 5]`, float64: weights of the pixels from two before to two after, for each new pixel of one.

    `sharpness` is the kernel's parameter a: -0.75 in PyTorch, -0.5 in Pillow.
    """
    new = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    x = (torch.arange(-REACH, REACH + 1) - new[:, None]).abs()
    near = ((sharpness + 2) * x - (sharpness + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * sharpness
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))

"""Pillow's bicubic interpolation in tensors, against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from s3diff_training.data import from_uint8, to_uint8
from s3diff_training.network.bicubic import bicubic, pillow_bicubic


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (3, 2), (37, 53)])
def test_it_is_pillows(scale: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((scale * width, scale * height), Image.Resampling.BICUBIC)
    found = to_uint8(pillow_bicubic(from_uint8(pixels)[None], scale))
    difference = np.abs(found.astype(int) - np.asarray(picture))
    inside = difference[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    assert difference.max() <= 1  # where kernels are cut, ties may be rounded either way
    assert np.mean(difference > 0) <= 0.05
    assert inside.size == 0 or inside.max() <= (1 if scale == 3 else 0)


def test_it_is_not_torchs() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    image = from_uint8(pixels)[None]
    assert (pillow_bicubic(image, 4) - bicubic(image, 4)).abs().max() > 0.02


def test_images_of_a_batch_stay_apart() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 5, 7, 3), np.uint8)
    alone = [from_uint8(each)[None] for each in pixels]
    both = pillow_bicubic(torch.cat(alone), 2)
    for number, image in enumerate(alone):
        assert both[number : number + 1].equal(pillow_bicubic(image, 2))

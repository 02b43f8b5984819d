"""Validation: pairs that stay the same, scores that follow the definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

from s3diff_runtime.errors import RequestError
from s3diff_training.data import PhotographFolder, from_uint8
from s3diff_training.metrics import psnr_y, ssim_y
from s3diff_training.network.bicubic import bicubic
from s3diff_training.train.pairs import Pair, held_out_pairs, validate_pairs


class MeanDistance(nn.Module):
    """Stands for LPIPS: reveals the range and the shape that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight * (x - y).abs().mean(dim=(1, 2, 3))


@pytest.fixture
def photographs(tmp_path: Path) -> PhotographFolder:
    Image.fromarray(data.astronaut()[:150, :213]).save(tmp_path / "a.png")
    Image.fromarray(data.coffee()[100:228, 100:228]).save(tmp_path / "b.png")
    return PhotographFolder(tmp_path)


def test_held_out_pairs_are_centred_and_fixed(photographs: PhotographFolder) -> None:
    pairs = held_out_pairs(photographs, seeds=(1, 2), size=130)
    again = held_out_pairs(photographs, seeds=(2,), size=130)
    assert [pair.name for pair in pairs] == ["a-1", "a-2", "b-1", "b-2"]
    assert pairs[0].hr.shape == (1, 3, 128, 128)
    assert pairs[0].lr.shape == (1, 3, 32, 32)
    assert torch.equal(pairs[0].hr[0], from_uint8(data.astronaut()[11:139, 42:170].copy()))
    assert torch.equal(pairs[1].lr, again[0].lr)
    assert torch.equal(pairs[3].lr, again[1].lr)
    assert not torch.equal(pairs[0].lr, pairs[1].lr)
    with pytest.raises(RequestError, match="smaller than 32"):
        held_out_pairs(photographs, seeds=(1,), size=31)


def test_scores_are_means_over_pairs_of_eight_bit_images(photographs: PhotographFolder) -> None:
    pairs = held_out_pairs(photographs, seeds=(1,), size=128)
    scores = validate_pairs(bicubic, pairs, MeanDistance())
    rows = []
    for pair in pairs:
        upscaled = torch.nn.functional.interpolate(pair.lr, scale_factor=4, mode="bicubic").clamp(0, 1)
        a, b = (
            (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in (upscaled, pair.hr)
        )
        distance = np.abs(a.astype(float) - b.astype(float)).mean() / 127.5
        rows.append((psnr_y(a, b), ssim_y(a, b), distance))
    expected = np.mean(rows, axis=0)
    assert scores == pytest.approx(dict(zip(("psnr_y", "ssim_y", "lpips"), expected, strict=True)), rel=1e-5)
    assert validate_pairs(bicubic, pairs).keys() == {"psnr_y", "ssim_y"}


def test_nothing_to_score_and_wrong_sizes_are_refused(photographs: PhotographFolder) -> None:
    with pytest.raises(RequestError, match="no pairs"):
        validate_pairs(bicubic, [])
    pair = Pair("p", torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32))
    with pytest.raises(RequestError, match=r"p: restored to \(1, 3, 8, 8\)"):
        validate_pairs(lambda lr: lr, [pair])

"""Our bicubic interpolation against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from s3diff_training.network.bicubic import bicubic_upscale


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (20, 33)])
def test_it_is_pytorchs(scale: int, size: tuple[int, int]) -> None:
    """In float64, in which PyTorch's places of new pixels are exact too."""
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = F.interpolate(
        image, [scale * side for side in size], mode="bicubic", align_corners=False, antialias=False
    )
    torch.testing.assert_close(bicubic_upscale(image, scale), theirs, atol=1e-13, rtol=0)


def test_float32_is_as_near_as_it_gets() -> None:
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(image, (256, 192), mode="bicubic", align_corners=False)
    torch.testing.assert_close(bicubic_upscale(image), theirs, atol=1e-6, rtol=0)
